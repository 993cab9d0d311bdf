"""Weights that the guide proposes."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.console.guide.weights import shares_said, weights_proposed


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([100], 30, (70, 30)),
        ([700, 300], 10, (63, 27, 10)),
        ([1, 1, 1], 10, (30, 30, 30, 10)),
        ([1, 1, 1], 50, (17, 17, 16, 50)),
        ([100, 0], 100, (0, 0, 100)),
        ([0, 0], 10, (0, 0, 100)),
        ([], 10, (100,)),
    ],
)
def test_examples(weights: list[int], share: int, expected: tuple[int, ...]) -> None:
    assert weights_proposed(weights, share=share) == expected


@given(st.lists(st.integers(0, 1000), max_size=15), st.integers(1, 100))
def test_they_sum_to_a_hundred_and_keep_the_proportion(weights: list[int], share: int) -> None:
    *others, own = weights_proposed(weights, share=share)
    assert sum(others) + own == 100
    if sum(weights):
        assert own == share
        for before, after in zip(weights, others, strict=True):
            exact = Fraction((100 - share) * before, sum(weights))
            assert abs(after - exact) < 1
            assert after >= 0


def test_shares_in_words() -> None:
    assert shares_said([("a", 70), ("b", 50)]) == "a 58.3 %, b 41.7 %"
    assert shares_said([("a", 0)]) == "nobody gets anything"
