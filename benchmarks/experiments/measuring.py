"""How often the looks of many simulated experiments were wrong, or right in time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from apps.statistics.comparing import compare
from apps.statistics.mismatch import COARSE, CONCENTRATION
from apps.statistics.moments import Moments
from apps.statistics.planning import Plan, baseline, units_needed
from benchmarks.experiments.looking import Looks
from benchmarks.experiments.running import log_gamma, mean_looks, running_moments
from benchmarks.experiments.scenes import PlannedScene, Scene

ALPHA: Final = 0.05
POWER: Final = 0.8
PILOT_UNITS: Final = 50_000
FIXED_PILOT_UNITS: Final = 600_000  # of rates, whose difference is estimated from them
NORMAL: Final = NormalDist()
FIXED_Z: Final = NORMAL.inv_cdf(1 - ALPHA / 2)
N_POINTS: Final = 60  # of a curve over the looks


@dataclass(frozen=True, slots=True)
class Found:
    """Figures of one scene, and for a plot the share of runs that had stopped, over the looks."""

    figures: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def false_alarms(scene: Scene, *, n_runs: int, seed: int) -> Found:
    """Run experiments in which nothing differs; beside it what a fixed test would have cried."""
    begin = time.perf_counter()
    generator = np.random.default_rng(seed)
    alarms: list[int | None] = []
    naive: list[int | None] = []
    length = 0
    for _ in range(n_runs):
        looks = _looks(scene, generator)
        length = max(length, len(looks.control.n))
        alarms.append(looks.first_alarm())
        if looks.kind != "rate":
            naive.append(_naive_alarm(looks))
    figures: dict[str, Any] = {"false_alarms": _share(alarms), "runs": n_runs, "looks": length}
    curves = {"at any time": _curve(alarms, length)}
    if naive:
        figures["false_alarms_of_a_fixed_test"] = _share(naive)
        curves["fixed test at each look"] = _curve(naive, length)
    return Found(_timed(figures, begin), curves)


def coverage(scene: Scene, *, n_runs: int, seed: int) -> Found:
    """Run experiments with an effect, and see whether an interval ever leaves out the truth."""
    begin = time.perf_counter()
    generator = np.random.default_rng(seed)
    misses = [_looks(scene, generator).first_miss(scene.truth) for _ in range(n_runs)]
    return Found(_timed({"coverage": round(1 - _share(misses), 4), "runs": n_runs}, begin))


def power(scene: PlannedScene, *, n_runs: int, seed: int) -> Found:
    """Plan by units without the effect, then run experiments with it up to the planned size.

    ``fixed_size``: how many units a test that is looked at once, at its end, would have needed.
    ``mean_size``: how many were needed on average, where one stops when it is decided.
    ``width``: of the interval of the relative effect in the end, over that of a fixed sample.
    """
    begin = time.perf_counter()
    generator = np.random.default_rng(seed)
    plan = plan_of(scene, generator)
    kind = scene.with_effect.kind
    stops, sizes, widths = [], [], []
    for _ in range(n_runs):
        seen = scene.with_effect.draw(generator, plan.arriving)
        looks = Looks.of(seen, kind=kind, planned_units=plan.planned_units, alpha=ALPHA)
        stop = looks.first_alarm()
        stops.append(stop)
        units = looks.control.n + looks.treatment.n
        sizes.append(float(units[-1 if stop is None else stop]))
        widths.append(_width_over_fixed(looks))
    first = NORMAL.inv_cdf(1 - ALPHA / 2) + NORMAL.inv_cdf(POWER)
    figures = {
        "power": _share(stops), "runs": n_runs, "planned_size": plan.arriving,
        "mean_size": round(float(np.mean(sizes))),
        "fixed_size": _fixed_size(scene, generator, first),
        "width": round(float(np.nanmedian(widths)), 3),
    }  # fmt: skip
    return Found(_timed(figures, begin))


def plan_of(scene: PlannedScene, generator: np.random.Generator) -> Plan:
    return units_needed(
        _baseline(scene, generator),
        kind=scene.without.kind, effect=scene.effect, shares=_shares(scene),
        alpha=ALPHA, power=POWER,
    )  # fmt: skip


def mismatches(*, true_share: float, n_runs: int, n_units: int, seed: int) -> Found:
    """Look after every unit at whether halves are halves."""
    begin = time.perf_counter()
    generator = np.random.default_rng(seed)
    alarms: list[int | None] = []
    number = np.arange(1.0, n_units + 1)
    for _ in range(n_runs):
        one = np.cumsum(generator.random(n_units) < true_share).astype(np.float64)
        fine, coarse = (_halves(one, number, each) for each in (CONCENTRATION, COARSE))
        evidence = np.logaddexp(fine, coarse) - np.log(2)
        beyond = np.flatnonzero(evidence > -np.log(ALPHA))
        alarms.append(int(beyond[0]) if len(beyond) else None)
    found = [at for at in alarms if at is not None]
    figures = {"alarms": _share(alarms), "runs": n_runs, "units": n_units}
    if found and true_share != 0.5:
        figures["median_units_until"] = int(np.median(found))
    return Found(_timed(figures, begin))


def _halves(one: np.ndarray, number: np.ndarray, concentration: int) -> np.ndarray:
    """Return the log of the evidence against halves after each unit, as ``mismatch`` has it."""
    half = np.full(len(number), concentration / 2)
    constant = log_gamma(np.array([float(concentration)])) - 2 * log_gamma(half[:1])
    evidence = constant - log_gamma(concentration + number) + number * np.log(2)
    return np.asarray(evidence + log_gamma(half + one) + log_gamma(half + number - one))


def _looks(scene: Scene, generator: np.random.Generator) -> Looks:
    seen = scene.world.draw(generator, scene.n_units)
    return Looks.of(seen, kind=scene.world.kind, planned_units=scene.planned_units, alpha=ALPHA)


def _naive_alarm(looks: Looks) -> int | None:
    """Return where a test for one look would have been significant, were it tried at each."""
    found = mean_looks(
        looks.control, looks.treatment,
        is_log=looks.kind == "log_mean", planned_units=looks.planned_units,
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        beyond = np.flatnonzero(np.abs(found.estimate) > FIXED_Z * found.error)
    return int(beyond[0]) if len(beyond) else None


def _width_over_fixed(looks: Looks) -> float:
    """Return the width of the last interval over that of a fixed sample (by the delta method); nan
    where nothing is said."""
    control, treatment = looks.control.at(-1), looks.treatment.at(-1)
    found = looks.at(-1)
    if looks.kind == "rate":
        assert found.difference_low is not None and found.difference_high is not None
        width = found.difference_high - found.difference_low
        return width / (2 * FIXED_Z * sqrt(_rate_variance(control) + _rate_variance(treatment)))
    if found.low is None or found.high is None:
        return float("nan")
    means = mean_looks(
        looks.control, looks.treatment,
        is_log=looks.kind == "log_mean", planned_units=looks.planned_units,
    )  # fmt: skip
    return log((1 + found.high) / (1 + found.low)) / (2 * FIXED_Z * float(means.error[-1]))


def _rate_variance(m: Moments) -> float:
    """Return the variance of y/x over the units, by the delta method."""
    rate = m.y / m.x
    return (m.yy - 2 * rate * m.yx + rate**2 * m.xx) / m.x**2


def _baseline(scene: PlannedScene, generator: np.random.Generator) -> Any:
    control, treatment = running_moments(scene.without.draw(generator, PILOT_UNITS))
    expected = baseline(control.at(-1) + treatment.at(-1), scene.without.kind)
    assert expected is not None
    return expected


def _shares(scene: PlannedScene) -> tuple[float, float]:
    share = scene.with_effect.treatment_shares[0]
    return 1 - share, share


def _fixed_size(scene: PlannedScene, generator: np.random.Generator, drift: float) -> int:
    """Return how many units one look would need: standardised effect of a large sample, scaled."""
    is_rate = scene.with_effect.kind == "rate"
    n_units = FIXED_PILOT_UNITS if is_rate else PILOT_UNITS
    moments = running_moments(scene.with_effect.draw(generator, n_units))
    if is_rate:
        control, treatment = (arm.at(-1) for arm in moments)
        difference = treatment.y / treatment.x - control.y / control.x
        z = difference / sqrt(_rate_variance(control) + _rate_variance(treatment))
        return round(n_units * (drift / z) ** 2)
    looks = mean_looks(*moments, is_log=scene.with_effect.kind == "log_mean", planned_units=n_units)
    return round(n_units * (drift * float(looks.error[-1]) / log(1 + scene.effect)) ** 2)


def _share(stops: Sequence[int | None]) -> float:
    return round(sum(stop is not None for stop in stops) / len(stops), 4)


def _curve(stops: Sequence[int | None], length: int) -> list[tuple[float, float]]:
    at = np.array([stop for stop in stops if stop is not None])
    looks = np.linspace(0, length, N_POINTS + 1)
    return [(float(look), float((at <= look).sum() / len(stops))) for look in looks]


def _timed(figures: dict[str, Any], begin: float) -> dict[str, Any]:
    return {**figures, "seconds": round(time.perf_counter() - begin, 1)}


def comparison_ms(compare_once: Callable[[], object]) -> float:
    """Return the processor's milliseconds of one comparison, the best of five rounds."""
    rounds = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(20):
            compare_once()
        rounds.append((time.process_time() - begin) / 20 * 1000)
    return round(min(rounds), 3)


def speeds() -> dict[str, float]:
    """Return the milliseconds that one comparison takes, by the kind."""
    few = Moments(10_000, 55, 10_000, 0, 0, 55, 55, 0, 0, 10_000)
    long = Moments(10_000, 10**10, 10**4, 10**10, 10**4, 3 * 10**16, 10**10, 2 * 10**16, 10**10)
    past = Moments(*(*long.to_json()[:9], 10**4, 10**10, 10**4, 3 * 10**16, 10**10, 10**4))
    return {
        kind: comparison_ms(
            lambda arm=arm, kind=kind: compare(
                arm, arm, kind=kind, alpha=ALPHA, planned_units=20_000
            )
        )
        for kind, arm in (("rate", few), ("mean", past), ("log_mean", past))
    }
