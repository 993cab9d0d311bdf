"""Shares in whole numbers: close enough, within bounds, and nobody else loses theirs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.rollouts.splitting import MOST_WEIGHT, split


@pytest.mark.parametrize(
    ("percent", "weights"),
    [(0.1, (999, 1)), (0.5, (995, 5)), (1, (990, 10)), (10, (900, 100)), (50, (1000, 1000)),
     (99.5, (5, 995)), (100, (0, 7))],
)  # fmt: skip
def test_alone_it_is_exact(percent: float, weights: tuple[int, int]) -> None:
    found = split(percent, baseline=7, others={})
    assert (found.percent, found.off) == (
        pytest.approx(percent, abs=1e-9),
        pytest.approx(0, abs=1e-9),
    )
    assert found.candidate * weights[0] == found.baseline * weights[1]


def test_beside_an_equal_other() -> None:
    found = split(1, baseline=100, others={3: 100, 4: 0})
    assert (found.baseline, found.candidate, dict(found.others)) == (990, 10, {3: 1000, 4: 0})


def test_what_cannot_be_given_is_said() -> None:
    found = split(10, baseline=1, others={3: 1000})
    assert found.percent == 50
    assert found.off == pytest.approx(4)


@settings(max_examples=40)
@given(
    st.floats(0.1, 99.9),
    st.integers(1, MOST_WEIGHT),
    st.dictionaries(st.integers(1, 5), st.integers(0, MOST_WEIGHT), max_size=3),
)
def test_weights_are_within_bounds_and_what_is_off_is_told(
    percent: float, baseline: int, others: dict[int, int]
) -> None:
    found = split(percent, baseline=baseline, others=others)
    both = found.baseline + found.candidate
    weights = [found.baseline, found.candidate, *found.others.values()]
    assert all(0 <= weight <= MOST_WEIGHT for weight in weights)
    assert min(found.baseline, found.candidate) >= 1
    assert found.others.keys() == others.keys()
    assert found.percent == pytest.approx(100 * found.candidate / both)
    assert found.off == pytest.approx(abs(found.percent / percent - 1))
    for key, weight in others.items():
        assert (found.others[key] == 0) is (weight == 0)
        if weight:
            off = abs(found.others[key] * baseline / (both * weight) - 1)
            assert off <= found.others_off + 1e-9


@settings(max_examples=40)
@given(st.floats(0.5, 99.5), st.integers(1, MOST_WEIGHT))
def test_from_half_a_percent_on_it_is_a_tenth_off_at_most(percent: float, baseline: int) -> None:
    """Of what is wanted; for whole and half percents it is exact."""
    assert split(percent, baseline=baseline, others={}).off < 0.1
