"""Sums that are the same whatever the order and the parts."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.statistics.moments import Moments
from tests.unit.statistics.units import Unit, whole

NUMBERS = st.integers(-(10**12), 10**12)
UNITS = st.lists(
    st.tuples(NUMBERS, st.integers(0, 10**6), NUMBERS, st.integers(0, 10**6)), max_size=12
)


def test_one_unit_has_its_products() -> None:
    assert Moments.of(2, 3, 5, 7) == Moments(
        n=1, y=2, x=3, v=5, u=7,
        yy=4, yx=6, yv=10, yu=14, xx=9, xv=15, xu=21, vv=25, vu=35, uu=49,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(UNITS, st.randoms(use_true_random=False), st.integers(0, 20))
def test_parts_in_any_order_are_the_whole(
    units: list[Unit], chosen: random.Random, cut: int
) -> None:
    shuffled = chosen.sample(units, len(units))
    assert whole(shuffled[:cut]) + whole(shuffled[cut:]) == whole(units)


@settings(max_examples=40, deadline=None)
@given(
    UNITS,
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
)
def test_a_unit_that_grew_is_replaced(units: list[Unit], old: Unit, new: Unit) -> None:
    before = whole([*units, old])
    assert before - Moments.of(*old) + Moments.of(*new) == whole([*units, new])


@settings(max_examples=40, deadline=None)
@given(UNITS)
def test_they_pass_through_json_to_the_last_digit(units: list[Unit]) -> None:
    sums = whole(units)
    written = json.loads(json.dumps(sums.to_json()))
    assert len(written) == 15
    assert Moments.from_json(written) == sums


def test_another_number_of_sums_is_refused() -> None:
    with pytest.raises(ValueError, match="15 sums, not 14"):
        Moments.from_json([1] * 14)
