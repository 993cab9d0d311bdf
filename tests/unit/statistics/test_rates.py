"""Rates: exact in small samples, and right where nothing or nearly nothing failed."""

import time
from functools import cache
from math import asin, comb, exp, inf, log, pi, sin, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.statistics.comparing import Comparison, compare
from apps.statistics.moments import Moments
from apps.statistics.rates import Stream, compare_rates, design_effect, evidence, streams
from tests.unit.statistics.units import rate_arm, whole


def found_of(
    control: Moments, treatment: Moments, *, alpha: float = 0.05, planned_units: int = 1000
) -> Comparison:
    return compare(control, treatment, kind="rate", alpha=alpha, planned_units=planned_units)


@pytest.mark.parametrize("n", [1, 7, 60])
@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("prior", [0.5, 3.0, 60.0])
def test_the_evidence_against_the_truth_is_one_on_average(
    n: int, rate: float, prior: float
) -> None:
    """What makes it a martingale, at every size of sample."""
    average = sum(
        comb(n, k) * rate**k * (1 - rate) ** (n - k)
        * exp(evidence(Stream(k, n, prior))(asin(sqrt(rate))))
        for k in range(n + 1)
    )  # fmt: skip
    assert average == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_alarms_after_every_trial_are_at_most_what_is_said(rate: float) -> None:
    """Exactly, over every path of trials that take turns: no simulation."""
    alpha, n_pairs = 0.3, 14
    alive = {(0, 0): 1.0}
    alarmed = 0.0

    @cache
    def is_alarm(n: int, k_control: int, k_treatment: int) -> bool:
        arms = rate_arm(n - n // 2, k_control), rate_arm(n // 2, k_treatment)
        p_value = found_of(*arms, alpha=alpha, planned_units=28).p_value
        return p_value is not None and p_value < alpha

    for n in range(1, 2 * n_pairs + 1):
        after: dict[tuple[int, int], float] = {}
        for (a, b), chance in alive.items():
            for success, weight in ((1, rate), (0, 1 - rate)):
                at = (a + success, b) if n % 2 else (a, b + success)
                if is_alarm(n, *at):
                    alarmed += chance * weight
                elif chance * weight > 1e-7:
                    after[at] = after.get(at, 0.0) + chance * weight
        alive = after
    assert alarmed <= alpha
    assert rate < 0.1 or alarmed > 0.02, "and there are some"


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((200, 5), (300, 20)), ((50, 0), (60, 3)), ((1000, 500), (1000, 560)), ((90, 88), (10, 7))],
)
def test_bounds_are_those_of_the_region_searched_through(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    arms = rate_arm(*control), rate_arm(*treatment)
    found = found_of(*arms)
    first, second = map(evidence, streams(*arms, planned_units=1000))
    grid = [pi / 2 * i / 1000 for i in range(1001)]
    rates = [sin(angle) ** 2 for angle in grid]
    against = [first(angle) for angle in grid], [second(angle) for angle in grid]
    least = min(against[0])
    highest = lowest = None
    for b, already in zip(rates, against[1], strict=True):
        if already + least > log(20):
            continue
        held = [a for a, more in zip(rates, against[0], strict=True) if already + more <= log(20)]
        highest = max(highest or -1, b - held[0])
        lowest = min(lowest or 1, b - held[-1])
    assert found.difference_high == pytest.approx(highest, abs=3e-3)
    assert found.difference_low == pytest.approx(lowest, abs=3e-3)
    weakest = min(map(sum, zip(*against, strict=True)))
    assert found.p_value == pytest.approx(min(1, exp(-weakest)), rel=1e-3)


def test_without_any_error_the_bounds_say_how_many_could_be() -> None:
    found = found_of(rate_arm(1000, 0), rate_arm(1000, 0))
    assert (found.effect, found.low, found.high, found.p_value) == (0, -1, inf, 1)
    assert found.difference_high is not None
    assert 3 / 1000 < found.difference_high < 8 / 1000, "the rule of three, at any time"
    assert found.difference_low == pytest.approx(-found.difference_high)


def test_errors_where_the_control_has_none() -> None:
    found = found_of(rate_arm(1000, 0), rate_arm(1000, 25))
    assert (found.effect, found.high) == (inf, inf)
    assert found.low is not None and found.low > 0
    assert found.p_value is not None and found.p_value < 0.001
    one = found_of(rate_arm(1000, 0), rate_arm(1000, 1))
    assert one.p_value == 1


def test_one_trial_each_is_enough_to_say_something() -> None:
    found = found_of(rate_arm(1, 0), rate_arm(1, 1))
    assert found.p_value == 1
    assert found.difference_high == pytest.approx(1, abs=0.05)
    assert found.difference_low is not None and found.difference_low < 0


def test_without_trials_nothing_is_said() -> None:
    found = found_of(rate_arm(10, 1), Moments())
    assert (found.control, found.treatment, found.effect, found.p_value) == (0.1, None, None, None)


@pytest.mark.parametrize("arm", [rate_arm(5, 6), rate_arm(5, -1)])
def test_what_is_no_rate_is_refused(arm: Moments) -> None:
    with pytest.raises(ValueError, match="between 0 and x"):
        found_of(rate_arm(5, 2), arm)


def test_one_trial_a_unit_is_one_trial() -> None:
    assert design_effect(rate_arm(12_345, 678)) == 1


def test_units_that_fail_as_one_count_as_one() -> None:
    units = [(10, 10, 0, 0)] * 200 + [(0, 10, 0, 0)] * 800
    assert design_effect(whole(units)) == pytest.approx(10, rel=0.01)
    control, treatment = whole(units), whole(units[:260] * 3 + units[-220:])
    together, apart = (
        found_of(control, treatment),
        found_of(rate_arm(control.x, control.y), rate_arm(treatment.x, treatment.y)),
    )
    assert together.effect == apart.effect
    assert together.difference_high is not None and apart.difference_high is not None
    assert together.difference_high > 1.5 * apart.difference_high - 0.5 * (apart.difference or 0)


def test_before_any_error_units_could_fail_as_one() -> None:
    assert design_effect(whole([(0, 10, 0, 0)] * 100)) == 10
    assert design_effect(whole([(1, 10, 0, 0)] * 50 + [(0, 10, 0, 0)] * 50)) < 1.2


COUNTS = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(max_examples=30, deadline=None)
@given(COUNTS, COUNTS)
def test_arms_may_be_swapped_and_intervals_are_nested(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    arms = rate_arm(*control), rate_arm(*treatment)
    found, other = found_of(*arms), found_of(*arms[::-1])
    surer = found_of(*arms, alpha=0.01)
    assert found.low is not None and found.high is not None and other.low is not None
    assert found.difference_low is not None and found.difference_high is not None
    assert surer.difference_low is not None and surer.difference_high is not None
    assert found.difference_low == pytest.approx(-(other.difference_high or 0), abs=1e-6)
    if found.high < 1e6:
        assert 1 + found.high == pytest.approx(1 / (1 + other.low), rel=1e-3)
    assert found.p_value == pytest.approx(other.p_value, rel=1e-6)
    assert -1 <= surer.difference_low <= found.difference_low <= (found.difference or 0)
    assert (found.difference or 0) <= found.difference_high <= surer.difference_high <= 1
    assert surer.low is not None and -1 <= surer.low <= found.low
    assert surer.p_value == found.p_value and found.p_value is not None
    if abs(log(max(found.p_value, 1e-300) / 0.05)) > 0.02:
        is_different = not found.difference_low <= 0 <= found.difference_high
        assert (found.p_value < 0.05) == is_different
        assert (found.low > 0 or found.high < 0) == is_different


def test_a_comparison_is_fast() -> None:
    arms = rate_arm(9000, 45), rate_arm(1000, 15)
    begin = time.process_time()
    for _ in range(20):
        compare_rates(*arms, alpha=0.05, planned_units=2000)
    # Under 2 ms where nobody else works; here it is known to be of that order.
    assert (time.process_time() - begin) / 20 < 0.01
