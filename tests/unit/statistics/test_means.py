"""Means against what the raw units say, by other ways."""

from collections.abc import Sequence
from math import exp, expm1, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.statistics.boundary import MEANS_RATIO
from apps.statistics.comparing import compare
from apps.statistics.means import USED_ALPHA
from apps.statistics.moments import Moments
from apps.statistics.planning import baseline
from tests.unit.statistics.units import Unit, latencies, whole


def radius(ratio: float, alpha: float) -> float:
    """The boundary of theorem 2.2 with t rho^2 = ratio, over the standard error."""
    return sqrt(2 * (ratio + 1) / ratio * log(sqrt(ratio + 1) / (alpha * USED_ALPHA)))


def influences(units: list[Unit], *, is_log: bool) -> tuple[float, "np.ndarray"]:
    y, x = (np.array([unit[i] for unit in units], dtype=float) for i in (0, 1))
    if is_log:
        y = y / 1e6
    mean = y.sum() / x.sum()
    moved = (y - mean * x) / x.mean()
    return (mean, moved) if is_log else (log(mean), moved / mean)


def standard_errors(moved: "Sequence[np.ndarray]") -> list[float]:
    """Of each arm, whose spread is not taken to be less than that of both together."""
    n = sum(len(part) - 1 for part in moved)
    common = sum(part.var(ddof=1) * (len(part) - 1) for part in moved) / n
    return [sqrt(max(part.var(ddof=1), common) / len(part)) for part in moved]


@pytest.mark.parametrize("is_log", [False, True])
def test_an_effect_and_its_bounds_are_those_of_the_delta_method(is_log: bool) -> None:
    arms = [latencies(n, seed=n, effect=e, is_log=is_log) for n, e in ((900, 0.0), (700, 0.2))]
    levels, moved = zip(*(influences(arm, is_log=is_log) for arm in arms), strict=True)
    errors = standard_errors(moved)
    error = sqrt(sum(part**2 for part in errors))
    effect = levels[1] - levels[0]
    ratio = MEANS_RATIO * 4 * 900 * 700 / 1600 / 1000
    found = compare(
        whole(arms[0]), whole(arms[1]),
        kind="log_mean" if is_log else "mean", alpha=0.05, planned_units=1000,
    )  # fmt: skip
    assert found.effect == pytest.approx(expm1(effect))
    assert found.low == pytest.approx(expm1(effect - error * radius(ratio, 0.05)))
    assert found.high == pytest.approx(expm1(effect + error * radius(ratio, 0.05)))
    values = [exp(level) for level in levels]
    assert (found.control, found.treatment) == pytest.approx(values)
    assert found.difference == pytest.approx(values[1] - values[0])
    reach = radius(ratio, 0.05)
    turns = np.linspace(0, 2 * np.pi, 20_000)
    ellipse = [
        np.exp(level + reach * error * turned)
        for level, error, turned in zip(levels, errors, (np.cos(turns), np.sin(turns)), strict=True)
    ]
    between = ellipse[1] - ellipse[0]
    assert found.difference_low == pytest.approx(between.min(), rel=1e-5)
    assert found.difference_high == pytest.approx(between.max(), rel=1e-5)
    z = effect / error
    mixture = exp(z**2 * ratio / (2 * (1 + ratio))) / sqrt(1 + ratio)
    assert found.p_value == pytest.approx(1 / mixture / USED_ALPHA)
    assert not found.is_reduced


def test_a_past_is_taken_out_as_by_a_regression() -> None:
    arms = [latencies(800, seed=seed, effect=e, has_past=True) for seed, e in ((1, 0), (2, 0.1))]
    levels, moved = zip(*(influences(arm, is_log=False) for arm in arms), strict=True)
    v, u = (np.array([unit[i] for arm in arms for unit in arm], dtype=float) for i in (2, 3))
    past = np.split(v - v.sum() / u.sum() * u, 2)
    slope = sum(np.cov(m, p)[0, 1] for m, p in zip(moved, past, strict=True)) / sum(
        p.var(ddof=1) for p in past
    )
    left = [m - slope * p for m, p in zip(moved, past, strict=True)]
    effect = levels[1] - levels[0] - slope * (past[1].mean() - past[0].mean())
    error = sqrt(sum(part**2 for part in standard_errors(left)))
    found = compare(*map(whole, arms), kind="mean", alpha=0.05, planned_units=1600)
    assert found.is_reduced
    assert found.effect == pytest.approx(expm1(effect))
    assert found.low == pytest.approx(expm1(effect - error * radius(MEANS_RATIO, 0.05)))
    assert found.control == pytest.approx(exp(levels[0])), "what was observed stays"
    plain = compare(
        *(whole((y, x, 0, 0) for y, x, _, _ in arm) for arm in arms),
        kind="mean", alpha=0.05, planned_units=1600,
    )  # fmt: skip
    assert found.high is not None and found.low is not None
    assert plain.high is not None and plain.low is not None
    assert found.high - found.low < 0.9 * (plain.high - plain.low)
    expected = baseline(whole(arms[0]), "mean")
    assert expected is not None
    reduced = np.std(moved[0] - np.polyval(np.polyfit(past[0], moved[0], 1), past[0]))
    assert expected.spread == pytest.approx(reduced, rel=0.01)


def test_a_past_of_few_is_left_alone() -> None:
    arms = [latencies(300, seed=seed, has_past=True) for seed in (1, 2)]
    few = [[*arm[:40], *((y, x, 0, 0) for y, x, _, _ in arm[40:])] for arm in arms]
    none = [[(y, x, 0, 0) for y, x, _, _ in arm] for arm in arms]
    assert compare(*map(whole, few), kind="mean", alpha=0.05, planned_units=600) == compare(
        *map(whole, none), kind="mean", alpha=0.05, planned_units=600
    )


@pytest.mark.parametrize(
    ("units", "is_said"),
    [
        ([(900, 1, 0, 0), (1100, 1, 0, 0)] * 25, False),  # as good as 49.5 equal ones
        ([(900, 1, 0, 0), (1100, 1, 0, 0)] * 26, True),
        ([(900, 1, 0, 0), (1100, 1, 0, 0)] * 26 + [(10**6, 1000, 0, 0)], False),  # one has most
        ([(1, 1, 0, 0)] * 49 + [(10_000, 1, 0, 0)] * 49, False),  # half of them have all
    ],
)
def test_nothing_is_said_of_few(units: list[Unit], is_said: bool) -> None:
    many = whole([(900, 1, 0, 0), (1100, 1, 0, 0)] * 500)
    for arms in ((whole(units), many), (many, whole(units))):
        found = compare(*arms, kind="mean", alpha=0.05, planned_units=1000)
        assert (found.effect is not None) == is_said
        assert (found.difference is not None) == is_said
        assert (found.p_value is not None) == is_said


def test_logs_of_fifty_units_are_enough() -> None:
    units: list[Unit] = [(-1000, 1, 0, 0), (1200, 1, 0, 0)] * 25
    assert (
        compare(whole(units), whole(units), kind="log_mean", alpha=0.05, planned_units=100).effect
        == 0
    )
    few = whole(units[1:])
    assert compare(few, few, kind="log_mean", alpha=0.05, planned_units=100).effect is None


def test_numbers_of_any_sign_have_a_difference_and_no_relative_effect() -> None:
    control = whole([(1, 1, 0, 0), (-1, 1, 0, 0)] * 1000)
    treatment = whole([(2, 1, 0, 0), (0, 1, 0, 0)] * 1000)
    found = compare(control, treatment, kind="mean", alpha=0.05, planned_units=4000)
    assert (found.effect, found.low, found.high) == (None, None, None)
    assert found.difference == 1
    assert found.difference_low is not None and 0.9 < found.difference_low < 1
    assert found.p_value is not None and found.p_value < 1e-9


def test_of_what_never_varies_nothing_is_said() -> None:
    same = whole([(7, 1, 0, 0)] * 500)
    found = compare(same, same, kind="mean", alpha=0.05, planned_units=1000)
    assert (found.control, found.effect, found.difference, found.p_value) == (7, None, None, None)


def test_of_nobody_nothing_is_said() -> None:
    found = compare(Moments(), Moments(), kind="mean", alpha=0.05, planned_units=1000)
    assert (found.control, found.treatment, found.effect, found.n_control) == (None, None, None, 0)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["mean", "log_mean"]), st.booleans())
def test_arms_may_be_swapped_and_intervals_are_nested(seed: int, kind: str, has_past: bool) -> None:
    is_log = kind == "log_mean"
    arms = [
        whole(latencies(n, seed=seed + n, has_past=has_past, is_log=is_log)) for n in (400, 500)
    ]
    found = compare(*arms, kind=kind, alpha=0.05, planned_units=800)  # type: ignore[arg-type]
    other = compare(*arms[::-1], kind=kind, alpha=0.05, planned_units=800)  # type: ignore[arg-type]
    surer = compare(*arms, kind=kind, alpha=0.01, planned_units=800)  # type: ignore[arg-type]
    assert found.low is not None and found.high is not None and other.low is not None
    assert 1 + found.high == pytest.approx(1 / (1 + other.low))
    assert found.difference == pytest.approx(-(other.difference or 0))
    assert found.difference_low == pytest.approx(-(other.difference_high or 0))
    assert found.p_value == pytest.approx(other.p_value)
    assert surer.low is not None and surer.high is not None
    assert surer.low < found.low < found.high < surer.high
    assert surer.p_value == found.p_value
    assert found.p_value is not None
    assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
