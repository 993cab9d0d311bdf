"""What is guessed, how much of it is worth a step, and when guessing stops."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.scheduling.drafting import Drafter, PromptLookup, StepCost


def slow_lookup(token_ids: list[int], *, max_tokens: int) -> list[int]:
    """Look through all places before the last, the newest first."""
    for start in range(len(token_ids) - 1, 2, -1):
        if token_ids[start - 3 : start] == token_ids[-3:]:
            guess = token_ids.copy()
            for _ in range(max_tokens):
                guess.append(guess[start])
                start += 1
            return guess[len(token_ids) :]
    return []


@given(
    token_ids=st.lists(st.integers(0, 2), max_size=40),
    steps=st.lists(st.integers(0, 4), max_size=10),
    max_tokens=st.integers(1, 8),
)
@settings(max_examples=300, deadline=None)
def test_the_index_finds_what_a_search_finds(
    token_ids: list[int], steps: list[int], max_tokens: int
) -> None:
    lookup = PromptLookup()
    n_known = 0
    for step in [*steps, len(token_ids)]:
        n_known = min(n_known + step, len(token_ids))
        known = token_ids[:n_known]
        found = list(lookup.propose(known, max_tokens=max_tokens))
        assert found == slow_lookup(known, max_tokens=max_tokens)


@pytest.mark.parametrize("fixed", [0.5, 8.0, 40.0])
@pytest.mark.parametrize("n_rows", [1, 4, 32])
@pytest.mark.parametrize("chance", [0.0, 0.05, 0.3, 0.6, 0.9, 1.0])
def test_the_draft_is_as_long_as_gives_most_tokens_a_second(
    fixed: float, n_rows: int, chance: float
) -> None:
    cost = StepCost()
    cost.fixed_tokens = fixed

    def rate(n_draft: int) -> float:
        return sum(chance**i for i in range(n_draft + 1)) / (fixed + n_rows * (1 + n_draft))

    chosen = cost.worthwhile(chance, n_rows=n_rows, most=10)
    assert rate(chosen) == pytest.approx(max(rate(n) for n in range(11)))


@pytest.mark.parametrize(("base_s", "token_s", "expected"), [(0.02, 0.002, 10.0), (0.0, 0.01, 0.5)])
def test_the_cost_of_a_token_is_learnt_from_steps(
    base_s: float, token_s: float, expected: float
) -> None:
    rng = random.Random(1)
    cost = StepCost()
    for _ in range(300):
        n_tokens = rng.randint(1, 9)
        noise = rng.uniform(0.95, 1.05)
        cost.record(n_tokens=n_tokens, step_s=(base_s + token_s * n_tokens) * noise)
    assert cost.fixed_tokens == pytest.approx(expected, rel=0.15)


def test_steps_of_one_size_teach_nothing() -> None:
    cost = StepCost()
    for step in range(100):
        cost.record(n_tokens=4, step_s=0.01 * (1 + step % 3))
    assert cost.fixed_tokens == StepCost().fixed_tokens


class Constant:
    """Always expects token 1."""

    def propose(self, token_ids: object, *, max_tokens: int) -> list[int]:
        return [1] * max_tokens


def test_drafting_stops_where_it_does_not_pay_and_comes_back() -> None:
    drafter, cost = Drafter(Constant()), StepCost()
    token_ids = [0]

    def length() -> int:
        return len(drafter.draft(token_ids, cost=cost, n_rows=4, most=8))

    assert length() > 0
    for _ in range(8):
        token_ids.append(2)
        last = length()
    assert last == 0
    # What it would have drafted comes true, which costs nothing to see.
    for _ in range(30):
        token_ids.append(1)
        last = length()
    assert last == 8
