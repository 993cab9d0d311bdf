"""How many units an experiment needs, and what so many can show.

The power is that of the sequential test with a look after every unit: the chance that it has
decided by the planned size, at the latest. It is bounded from below by the chance to cross a
straight line that touches the boundary from above, for which there is a formula (Bachelier, Lévy).
The estimates are taken to be normal; benchmarks/experiments measures what is really reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, erfc, exp, inf, log, log1p, sqrt
from typing import Final

from apps.statistics.boundary import MEANS_RATIO, RATES_RATIO, equal_units
from apps.statistics.comparing import Kind, metric_value
from apps.statistics.means import MICRO, USED_ALPHA, influence_square, unexplained
from apps.statistics.moments import Moments
from apps.statistics.rates import design_effect

MOST_UNITS: Final = 10**12
SPARE: Final = 1.1  # times what normal estimates of a known spread would need
TOUCHES: Final = tuple(i / 20 for i in range(2, 21))  # where the line touches, as a share of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the control is expected to be, a unit at a time.

    value: the metric. spread: standard error of its log, times the square root of the units.
    trials: of a rate, how many independent ones a unit has.
    """

    value: float
    spread: float
    trials: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Units of each arm; ``arriving``: of all arms together, until these two have theirs.
    ``planned_units`` is what ``compare`` is to be told."""

    control: int
    treatment: int
    arriving: int
    planned_units: int


def baseline(moments: Moments, kind: Kind) -> Baseline | None:
    """Read from units like those that will come; None where they say nothing.

    Their past, where they have one, is taken out of the spread as it will be by ``compare``.
    """
    value = metric_value(moments, kind)
    if value is None or moments.n < 2 or value <= 0:
        return None
    if kind == "rate":
        trials = moments.x / design_effect(moments) / moments.n
        return rate_baseline(value, trials=trials) if value < 1 else None
    scale = moments.x**2 * (MICRO if kind == "log_mean" else value)
    variance = moments.n**2 * influence_square(moments) / (moments.n - 1) / scale**2
    spread = sqrt(variance * unexplained(moments))
    return Baseline(value=value, spread=spread) if spread else None


def rate_baseline(rate: float, *, trials: float = 1.0) -> Baseline:
    """Return what is expected of a rate between 0 and 1. trials: of a unit, independent ones."""
    return Baseline(value=rate, spread=sqrt((1 - rate) / rate / trials), trials=trials)


def units_needed(
    expected: Baseline,
    *,
    kind: Kind,
    effect: float,
    shares: tuple[float, float] = (0.5, 0.5),
    alpha: float = 0.05,
    power: float = 0.8,
) -> Plan:
    """Return the units with which a relative effect is found with a power, or a greater one more
    surely. shares: of control and treatment, of all units that arrive.

    Raises ValueError for no effect, for rates beyond 0 to 1, and where no number would do.
    """
    _check(shares, alpha=alpha, power=power)
    if effect == 0 or effect <= -1:
        raise ValueError("an effect is not 0, and more than -1")
    per_unit = _information(expected, kind=kind, effect=effect, shares=shares)
    drift = _drift_needed(_reach(kind, shares, alpha), power=power)
    arriving = SPARE * drift**2 / per_unit
    if arriving > MOST_UNITS:
        raise ValueError("the effect is too small to be found")
    control, treatment = (ceil(arriving * share) for share in shares)
    return Plan(
        control=control,
        treatment=treatment,
        arriving=ceil(arriving),
        planned_units=ceil(equal_units(control, treatment)),
    )


def detectable_effect(
    expected: Baseline,
    *,
    kind: Kind,
    arriving: int,
    shares: tuple[float, float] = (0.5, 0.5),
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """Return the least relative increase that so many units find with a power; None where even a
    hundredfold (or a rate of 1) would not be found."""
    _check(shares, alpha=alpha, power=power)
    drift = _drift_needed(_reach(kind, shares, alpha), power=power)
    low, high = 0.0, 100.0
    if kind == "rate":
        high = min(high, (1 - 1e-9) / expected.value - 1)

    def is_found(effect: float) -> bool:
        per_unit = _information(expected, kind=kind, effect=effect, shares=shares)
        return per_unit * arriving >= SPARE * drift**2

    if not is_found(high):
        return None
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if is_found(middle):
            high = middle
        else:
            low = middle
    return high


def _check(shares: tuple[float, float], *, alpha: float, power: float) -> None:
    if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ValueError("shares are positive and together 1 at most")
    if not 0 < alpha < power < 1:
        raise ValueError("alpha and power lie between 0 and 1, power above alpha")


def _information(
    expected: Baseline, *, kind: Kind, effect: float, shares: tuple[float, float]
) -> float:
    """Return the square of the standardised effect that one arriving unit adds."""
    control, treatment = shares
    if kind != "rate":
        return (log1p(effect) / expected.spread) ** 2 * equal_units(control, treatment) / 4
    rates = expected.value, expected.value * (1 + effect)
    if not 0 < max(rates) < 1:
        raise ValueError("the rate with the effect lies between 0 and 1")
    middle = (control * rates[0] + treatment * rates[1]) / (control + treatment)
    return (
        2 * expected.trials
        * sum(share * _divergence(rate, middle) for share, rate in zip(shares, rates, strict=True))
    )  # fmt: skip


def _divergence(p: float, q: float) -> float:
    """Kullback and Leibler's, of two rates."""
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def _reach(kind: Kind, shares: tuple[float, float], alpha: float) -> Callable[[float], float]:
    """Return the boundary at a share of the plan, in standard errors at the whole of it, times the
    share's square root: what a Brownian motion over 0 to 1 has to reach."""
    if kind != "rate":
        ratios: Sequence[float] = (MEANS_RATIO,)
        weights: Sequence[float] = (1.0,)
        alpha *= USED_ALPHA
    else:
        # The prior is that of equal arms; each arm has its own ratio, and part of the variance.
        whole = equal_units(*shares)
        ratios = [RATES_RATIO * 2 * share / whole for share in shares]
        weights = [shares[1] / sum(shares), shares[0] / sum(shares)]

    def reach(part: float) -> float:
        price = sum(log1p(ratio * part) for ratio in ratios) - 2 * log(alpha)
        blur = sum(w / ratio for w, ratio in zip(weights, ratios, strict=True))
        return sqrt((part + blur) * price)

    return reach


def _drift_needed(reach: Callable[[float], float], *, power: float) -> float:
    """Return the least standardised effect at the planned size that is found with the power."""
    lines = []
    for touch in TOUCHES:
        slope = (reach(touch) - reach(touch - 1e-4)) / 1e-4
        lines.append((reach(touch) - slope * touch, slope))
    low, high = 0.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if max(_crossing(middle, start, slope) for start, slope in lines) < power:
            low = middle
        else:
            high = middle
    return high


def _crossing(drift: float, start: float, slope: float) -> float:
    """Return the chance that W(t) + drift t reaches start + slope t by the time 1."""
    over = drift - slope
    weight = 2 * start * over
    again = exp(weight) * _normal(-start - over) if weight < 500 else inf
    return _normal(over - start) + min(again, 1.0)


def _normal(z: float) -> float:
    return erfc(-z / sqrt(2)) / 2
