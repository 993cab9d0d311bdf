"""Sizes of arms, many comparisons at once, and the bounds of what is asked."""

import subprocess
import sys
from math import log, prod, sqrt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.statistics.boundary import always_valid_p, equal_units, radius, tuned_ratio
from apps.statistics.comparing import compare
from apps.statistics.mismatch import COARSE, CONCENTRATION, mismatch_p_value
from apps.statistics.multiplicity import bonferroni, holm
from tests.unit.statistics.units import rate_arm

P_VALUES = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=1, max_size=8)


def test_the_mixtures_boundary_is_that_of_the_paper() -> None:
    """Waudby-Smith et al., theorem 2.2: the square of rho, and the width, at t = 500."""
    rho = 0.17
    expected = sqrt(2 * (500 * rho**2 + 1) / (500**2 * rho**2) * log(sqrt(500 * rho**2 + 1) / 0.05))
    assert radius(500 * rho**2, alpha=0.05) / sqrt(500) == pytest.approx(expected)
    # Their appendix: the square of the best rho is (-W(-alpha^2 / e) - 1) / t, W the lower branch.
    ratio = tuned_ratio(1)
    w = -(ratio + 1)
    assert w * 2.718281828459045**w == pytest.approx(-(0.05**2) / 2.718281828459045)


@pytest.mark.parametrize("n_mixed", [1, 2])
def test_the_boundary_is_narrowest_where_it_is_tuned(n_mixed: int) -> None:
    ratio = tuned_ratio(n_mixed)
    best = radius(ratio, alpha=0.05, n_mixed=n_mixed)
    assert best < radius(ratio * 1.1, alpha=0.05, n_mixed=n_mixed)
    assert best < radius(ratio / 1.1, alpha=0.05, n_mixed=n_mixed)


def test_a_p_value_is_the_level_at_which_the_boundary_is_reached() -> None:
    assert always_valid_p(radius(3.0, alpha=0.013), 3.0) == pytest.approx(0.013)
    assert always_valid_p(0.0, 3.0) == 1


def test_unequal_arms_count_less() -> None:
    assert equal_units(500, 500) == 1000
    assert equal_units(900, 100) == pytest.approx(360)
    assert equal_units(0, 0) == 0


def predicted(order: list[int], shares: list[float]) -> float:
    """The same by another way: one unit after the other, each predicted by those before it, by one
    who is slow to doubt the shares and one who is quick; the mean of what both win."""
    whole = sum(shares)
    won = []
    for concentration in (CONCENTRATION, COARSE):
        weights = [concentration * share / whole for share in shares]
        factors = []
        for arm in order:
            factors.append(weights[arm] / sum(weights) / (shares[arm] / whole))
            weights[arm] += 1
        won.append(prod(factors))
    return min(1.0, len(won) / sum(won))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=200))
def test_a_mismatch_is_what_predicting_each_unit_gives(order: list[int]) -> None:
    shares = [5.0, 3.0, 2.0]
    counts = [order.count(arm) for arm in range(3)]
    assert mismatch_p_value(counts, shares) == pytest.approx(predicted(order, shares))


def test_a_mismatch_shows_and_chance_does_not() -> None:
    assert mismatch_p_value([5200, 4800], [1, 1]) < 0.05
    assert mismatch_p_value([5050, 4950], [1, 1]) > 0.5
    assert mismatch_p_value([0, 0], [1, 1]) == 1
    swapped = mismatch_p_value([900, 9100], [1, 9])
    assert mismatch_p_value([9100, 900], [0.9, 0.1]) == pytest.approx(swapped)


@pytest.mark.parametrize(
    ("counts", "shares"), [([1], [1, 1]), ([], []), ([1, 1], [1, 0]), ([1, -1], [1, 1])]
)
def test_arms_that_are_none_are_refused(counts: list[int], shares: list[float]) -> None:
    with pytest.raises(ValueError, match="share"):
        mismatch_p_value(counts, shares)


def test_holm_as_it_is_published() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({}) == {}


@settings(max_examples=40, deadline=None)
@given(P_VALUES)
def test_holm_keeps_the_order_and_is_never_stricter_than_bonferroni(
    p_values: dict[int, float],
) -> None:
    adjusted = holm(p_values)
    by_p = sorted(p_values, key=p_values.__getitem__)
    assert [adjusted[key] for key in by_p] == sorted(adjusted.values())
    for key, p_value in p_values.items():
        assert p_value <= adjusted[key] <= min(1.0, len(p_values) * p_value)


def test_intervals_share_the_level() -> None:
    assert bonferroni(0.05, 10) == pytest.approx(0.005)
    assert bonferroni(0.05, 0) == 0.05


@pytest.mark.parametrize(("alpha", "planned_units"), [(0.0, 10), (1.0, 10), (0.05, 0)])
def test_levels_and_plans_that_are_none_are_refused(alpha: float, planned_units: int) -> None:
    with pytest.raises(ValueError, match=r"alpha|planned_units"):
        compare(
            rate_arm(9, 1), rate_arm(9, 1), kind="rate", alpha=alpha, planned_units=planned_units
        )


def test_the_room_needs_the_standard_library_only() -> None:
    code = (
        "import sys, apps.statistics.comparing, apps.statistics.planning, "
        "apps.statistics.mismatch, apps.statistics.multiplicity; "
        "print(sorted({'django', 'numpy'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == "[]"
