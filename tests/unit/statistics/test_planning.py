"""Plans: what they rest on, both ways, and that they keep what they promise."""

from math import exp, log, sqrt
from statistics import NormalDist

import pytest

from apps.statistics.boundary import MEANS_RATIO, radius
from apps.statistics.means import USED_ALPHA
from apps.statistics.planning import (
    SPARE,
    Baseline,
    baseline,
    detectable_effect,
    rate_baseline,
    units_needed,
)
from tests.unit.statistics.units import latencies, rate_arm, whole

LATENCY = Baseline(value=0.4, spread=1.3)


def test_between_one_look_and_the_boundary_at_the_end() -> None:
    """Always looking costs units, but fewer than if the last look alone had to decide."""
    normal = NormalDist()
    per_unit = (log(1.1) / 1.3) ** 2 / 4
    once = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) ** 2 / per_unit
    reach = radius(MEANS_RATIO, alpha=0.05 * USED_ALPHA)
    last = (reach + normal.inv_cdf(0.8)) ** 2 / per_unit
    plan = units_needed(LATENCY, kind="mean", effect=0.1)
    assert 1.5 * once < plan.arriving / SPARE < last
    assert plan.control == plan.treatment == (plan.arriving + 1) // 2


def test_shares_are_of_all_that_arrive() -> None:
    halves = units_needed(LATENCY, kind="mean", effect=0.1)
    plan = units_needed(LATENCY, kind="mean", effect=0.1, shares=(0.45, 0.05))
    assert plan.planned_units == pytest.approx(halves.planned_units, rel=0.001)
    assert plan.treatment == pytest.approx(0.05 * plan.arriving, abs=1)
    assert plan.control == pytest.approx(9 * plan.treatment, rel=0.001)
    assert plan.arriving == pytest.approx(halves.arriving / (4 * 0.45 * 0.05 / 0.5), rel=0.001)


@pytest.mark.parametrize(
    ("expected", "kind"),
    [(LATENCY, "mean"), (LATENCY, "log_mean"), (rate_baseline(0.01, trials=3.0), "rate")],
)
def test_both_ways_agree(expected: Baseline, kind: str) -> None:
    plan = units_needed(expected, kind=kind, effect=0.2, shares=(0.6, 0.4))  # type: ignore[arg-type]
    found = detectable_effect(
        expected,
        kind=kind,
        arriving=plan.arriving,
        shares=(0.6, 0.4),  # type: ignore[arg-type]
    )
    assert found == pytest.approx(0.2, rel=1e-3)


def test_more_power_surer_levels_and_smaller_effects_need_more() -> None:
    least = units_needed(LATENCY, kind="mean", effect=0.1).arriving
    assert units_needed(LATENCY, kind="mean", effect=0.1, power=0.9).arriving > least
    assert units_needed(LATENCY, kind="mean", effect=0.1, alpha=0.01).arriving > least
    assert units_needed(LATENCY, kind="mean", effect=0.05).arriving > 3.8 * least
    assert units_needed(LATENCY, kind="mean", effect=-0.1).arriving < least, "logs are not even"
    rate = rate_baseline(0.01)
    assert (
        units_needed(rate, kind="rate", effect=1).arriving
        < units_needed(rate, kind="rate", effect=0.5).arriving
    )


def test_a_baseline_is_read_from_units() -> None:
    arm = whole(latencies(2000, seed=3))
    found = baseline(arm, "mean")
    assert found is not None
    y, x = arm.y / arm.n, arm.x / arm.n
    variance = arm.yy / arm.n / y**2 - 2 * arm.yx / arm.n / (x * y) + arm.xx / arm.n / x**2
    assert found.spread == pytest.approx(sqrt(variance), rel=1e-3)
    assert found.value == pytest.approx(arm.y / arm.x)
    logs = baseline(whole(latencies(2000, seed=3, is_log=True)), "log_mean")
    assert logs is not None
    assert logs.value == pytest.approx(exp(12), rel=0.05)
    assert 0.3 < logs.spread < 1.0
    rate = baseline(rate_arm(1000, 10), "rate")
    assert rate == rate_baseline(0.01)


def test_of_nothing_there_is_no_baseline() -> None:
    assert baseline(rate_arm(0, 0), "mean") is None
    assert baseline(rate_arm(100, 0), "rate") is None
    assert baseline(rate_arm(100, 100), "rate") is None
    assert baseline(rate_arm(100, 100), "mean") is None, "no spread"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effect": 0.0}, "an effect"),
        ({"effect": -1.0}, "an effect"),
        ({"effect": 1e-9}, "too small"),
        ({"effect": 0.1, "shares": (0.9, 0.2)}, "shares"),
        ({"effect": 0.1, "shares": (1.0, 0.0)}, "shares"),
        ({"effect": 0.1, "alpha": 0.0}, "alpha"),
        ({"effect": 0.1, "power": 0.04}, "power"),
    ],
)
def test_plans_that_are_none_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        units_needed(LATENCY, kind="mean", **options)  # type: ignore[arg-type]


def test_a_rate_stays_below_one() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        units_needed(rate_baseline(0.5), kind="rate", effect=1.0)
    found = detectable_effect(rate_baseline(0.5), kind="rate", arriving=200)
    assert found is not None and 0 < found < 1
    assert detectable_effect(rate_baseline(0.5), kind="rate", arriving=10) is None
