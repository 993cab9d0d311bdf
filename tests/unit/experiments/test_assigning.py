"""Who is in which arm. The whole of it, a million subjects, is ``benchmarks.experiments``; here are
fewer of the same, and what holds for each."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.assigning import (
    N_SLOTS,
    free_slots,
    is_within,
    n_slots,
    slots_joined,
    slots_of_share,
    slots_taken,
    subject_digest,
    subject_slot,
    variant_of,
)
from benchmarks.experiments.assignment import CHANGES, independence_p, measured, misses

SUBJECTS = st.text("0123456789abcdef", min_size=16, max_size=16)
WEIGHTS = st.dictionaries(st.integers(1, 10**9), st.integers(1, 1000), min_size=2, max_size=10)
SALT = "0f4c2a9be1d84f6f8c3a5b7d9e102f34"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measured(50_000)


def test_shares_are_as_set(found: dict[str, Any]) -> None:
    # Four standard deviations of the largest arm are 0.9 % of so few.
    assert found["most off"] < 0.009
    assert abs(found["a quarter of the slots"] - 0.25) < 0.008
    assert found["most off within a quarter of the slots"] < 0.018


def test_experiments_know_nothing_of_each_other(found: dict[str, Any]) -> None:
    assert found["independence of two experiments, p"] > 0.01
    assert found["independence of arm and slot, p"] > 0.01


@pytest.mark.parametrize("change", CHANGES)
def test_only_who_must_move_moves(found: dict[str, Any], change: str) -> None:
    moved = found["changes"][change]
    assert moved["moved that need not"] == 0
    if change != "two change":
        assert abs(moved["moved"] - moved["least possible"]) < 0.009
    assert misses(found | {"most off": 0.0}) == []


@pytest.mark.prove
def test_a_million_subjects() -> None:
    whole = measured(1_000_000)
    print(whole)
    assert misses(whole) == []


def test_the_test_of_independence_finds_what_is_not() -> None:
    first = [number % 3 for number in range(3000)]
    assert independence_p(first, first) < 1e-9
    assert independence_p(first, [number // 1000 for number in range(3000)]) > 0.9


@given(subject=SUBJECTS, weights=WEIGHTS, factor=st.integers(2, 9))
def test_an_arm_depends_on_the_ratios_alone(
    subject: str, weights: dict[int, int], factor: int
) -> None:
    more = {arm: weight * factor for arm, weight in weights.items()}
    assert variant_of(salt=SALT, subject=subject, weights=weights) == variant_of(
        salt=SALT, subject=subject, weights=more
    )


@given(subject=SUBJECTS, weights=WEIGHTS, more=st.integers(1, 1000), data=st.data())
def test_who_moves_moves_to_the_arm_that_grew(
    subject: str, weights: dict[int, int], more: int, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before = variant_of(salt=SALT, subject=subject, weights=weights)
    after = variant_of(
        salt=SALT, subject=subject, weights={**weights, grown: weights[grown] + more}
    )
    assert after in (before, grown)


def test_what_stands_for_a_subject_stays() -> None:
    """Once in a ledger it has to be the same for ever."""
    named = {"kind": "end_user", "tenant_id": 7, "identifier": "joe"}
    assert subject_digest(salt=SALT, **named) == "586ed769d7ba57c1"
    assert subject_slot(layer_salt=SALT, **named) == 2049
    assert variant_of(salt=SALT, subject="586ed769d7ba57c1", weights={1: 50, 2: 50}) == 1


def test_another_kind_tenant_or_salt_is_another_subject() -> None:
    named = {"kind": "end_user", "tenant_id": 1, "identifier": "1"}
    others = ({"kind": "token"}, {"tenant_id": 2}, {"identifier": "2"}, {"salt": SALT[::-1]})
    digests = {subject_digest(**{"salt": SALT, **named, **other}) for other in ({}, *others)}
    assert len(digests) == 5


def test_a_name_of_any_letters_is_a_subject() -> None:
    for name in ("é", "\ud800", "x" * 10_000, "\0"):
        digest = subject_digest(salt=SALT, kind="end_user", tenant_id=1, identifier=name)
        assert len(digest) == 16


# -- slots -----------------------------------------------------------------------------------------


def test_slots() -> None:
    held = [[(1000, 2000), (5000, 6000)], [(2000, 2500)]]
    free = free_slots(held, n_held_out=500)
    assert free == [(500, 1000), (2500, 5000), (6000, N_SLOTS)]
    assert n_slots(free) == 7000
    assert slots_taken(free, n=600) == [(500, 1000), (2500, 2600)]
    assert slots_taken(free, n=500) == [(500, 1000)]
    assert slots_taken(free, n=0) == []
    assert slots_joined([(0, 10)], [(10, 20), (30, 40)]) == [(0, 20), (30, 40)]
    assert [slots_of_share(percent) for percent in (0.01, 12.345, 100.0)] == [1, 1234, 10_000]
    assert is_within(10, [(0, 10), (20, 30)]) is False
    assert is_within(20, [(0, 10), (20, 30)]) is True


@given(
    wishes=st.lists(st.integers(1, 3000), max_size=8),
    over=st.sets(st.integers(0, 7)),
    n_held_out=st.integers(0, 5000),
)
def test_no_slot_is_held_twice(wishes: list[int], over: set[int], n_held_out: int) -> None:
    """Whoever comes gets what is free, some go again, and then those who are left grow."""
    held: dict[int, list[tuple[int, int]]] = {}
    for number, wish in enumerate(wishes):
        held[number] = slots_taken(free_slots(held.values(), n_held_out=n_held_out), n=wish)
    for number in over & held.keys():
        del held[number]
    for number, before in list(held.items()):
        more = slots_taken(free_slots(held.values(), n_held_out=n_held_out), n=100)
        held[number] = slots_joined(before, more)
        assert all(
            is_within(slot, held[number]) for first, end in before for slot in (first, end - 1)
        )
    slots = [slot for each in held.values() for first, end in each for slot in range(first, end)]
    assert len(slots) == len(set(slots))
    assert all(n_held_out <= slot < N_SLOTS for slot in slots)
