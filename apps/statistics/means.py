"""Means of units with any spread: an asymptotic confidence sequence for their quotient.

The metric of an arm is the quotient of two sums over units (delta method: what a unit adds to the
error of log(Y/X) is y/Y - x/X). Where units have a past, what it explains is taken out (CUPED:
Deng, Xu, Kohavi, Walker, WSDM 2013), the past being a quotient that is linearised likewise. The
sequence is that of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 52 (2024), theorem 2.2.
"""

from dataclasses import dataclass
from math import exp, expm1, log, sqrt
from typing import Final

from apps.statistics.boundary import MEANS_RATIO, always_valid_p, equal_units, radius
from apps.statistics.bounds import NOTHING, Bounds
from apps.statistics.moments import Moments

MICRO: Final = 1e6  # logs are kept as round(1e6 * ln(value))
# Fewer are no large sample. Chosen by benchmarks/experiments: docs/statistics.md has the figures.
LEAST_UNITS: Final = 50
LEAST_WEIGHT: Final = 100  # of a sum that is to have a logarithm: more where few have most of it
LEAST_UNITS_OF_ANY_SIGN: Final = 2000  # for a difference of means that are hardly or not positive
USED_ALPHA: Final = 0.9  # the share of the level that is spent; the rest is for not being normal


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference of treatment and control on some scale, and its standard error."""

    value: float
    error: float
    is_reduced: bool = False


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm on some scale: its value there, and what a unit's y X - x Y moves it by."""

    moments: Moments
    value: float
    factor: float


def compare_means(
    control: Moments, treatment: Moments, *, is_log: bool, alpha: float, planned_units: int
) -> Bounds:
    """Bound the quotient and the difference of two means, geometric ones if ``is_log``."""
    arms = (control, treatment)
    is_relative = all(has_logarithm(arm, is_log=is_log) for arm in arms)
    least = LEAST_UNITS if is_relative else LEAST_UNITS_OF_ANY_SIGN
    if not all(effective_number(arm.x, arm.xx) >= least for arm in arms):
        return NOTHING
    ratio = MEANS_RATIO * equal_units(control.n, treatment.n) / planned_units
    reach = radius(ratio, alpha=alpha * USED_ALPHA)
    absolute = contrast(_absolute(control, is_log=is_log), _absolute(treatment, is_log=is_log))
    if absolute is None:
        return NOTHING
    relative = None
    if is_relative:
        relative = contrast(_relative(control, is_log=is_log), _relative(treatment, is_log=is_log))
    tested = relative or absolute
    effect = low = high = None
    if relative is not None:
        effect = expm1(relative.value)
        low = _effect(relative.value - reach * relative.error)
        high = _effect(relative.value + reach * relative.error)
    return Bounds(
        effect=effect,
        low=low,
        high=high,
        difference=absolute.value,
        difference_low=absolute.value - reach * absolute.error,
        difference_high=absolute.value + reach * absolute.error,
        p_value=min(1.0, always_valid_p(tested.value / tested.error, ratio) / USED_ALPHA),
        is_reduced=tested.is_reduced,
    )


def effective_number(total: int, squares: int) -> float:
    """Return how many equal units a sum is as good as, by Kish: few with nearly all are few."""
    return total**2 / squares if squares else 0.0


def has_logarithm(moments: Moments, *, is_log: bool) -> bool:
    """Say whether an arm's level, on the scale of logs, is surely one and about normal.

    With long tails that takes more units: of log-normal values with sigma 1, 272 for a weight of
    100, and with sigma 1.5, 949.
    """
    if is_log:
        return True
    return moments.y > 0 and effective_number(moments.y, moments.yy) >= LEAST_WEIGHT


def contrast(control: Arm, treatment: Arm) -> Estimate | None:
    """Estimate treatment minus control; None where nothing varies.

    A unit's influence is factor (y X - x Y), whose sum over the arm is 0 and whose products are
    integers: nothing is lost where the numbers are large and their spread is small.
    """
    theta = _theta(control, treatment)
    value = treatment.value - control.value
    variance = _variance(control) + _variance(treatment)
    if theta is not None:
        slope, past, saved = theta
        value -= slope * past
        variance -= saved
    if not variance > 0:
        return None
    return Estimate(value, sqrt(variance), is_reduced=theta is not None)


def _absolute(moments: Moments, *, is_log: bool) -> Arm:
    value = moments.y / moments.x
    factor = moments.n / moments.x**2
    if is_log:
        value = exp(value / MICRO)
        factor *= value / MICRO
    return Arm(moments, value, factor)


def _relative(moments: Moments, *, is_log: bool) -> Arm:
    """Return an arm on the scale of logs."""
    if is_log:
        return Arm(moments, moments.y / moments.x / MICRO, moments.n / moments.x**2 / MICRO)
    return Arm(moments, log(moments.y / moments.x), moments.n / (moments.x * moments.y))


def influence_square(moments: Moments) -> int:
    """Return the sum of (y X - x Y)^2 over the units."""
    m = moments
    return m.x**2 * m.yy - 2 * m.x * m.y * m.yx + m.y**2 * m.xx


def _variance(arm: Arm) -> float:
    n = arm.moments.n
    return arm.factor**2 * influence_square(arm.moments) / (n * (n - 1))


def _theta(control: Arm, treatment: Arm) -> tuple[float, float, float] | None:
    """Return the slope on the past, the past's own difference, and the variance that goes with it.

    The past of a unit is v U - u V, with U and V of both arms together: 0 for units without one.
    One slope for both arms: that which leaves the least variance. None where too few have a past.
    """
    arms = (control, treatment)
    v, u = (sum(getattr(arm.moments, name) for arm in arms) for name in ("v", "u"))
    together = squares = 0.0
    for arm in arms:
        m = arm.moments
        if effective_number(m.u, m.uu) < LEAST_UNITS:
            return None
        scale = m.n * (m.n - 1)
        product = m.x * (u * m.yv - v * m.yu) - m.y * (u * m.xv - v * m.xu)
        together += arm.factor * product / scale
        squares += (m.n * _past_square(m, v, u) - _past_sum(m, v, u) ** 2) / (m.n * scale)
    if squares <= 0:
        return None
    slope = together / squares
    past = (
        _past_sum(treatment.moments, v, u) / treatment.moments.n
        - _past_sum(control.moments, v, u) / control.moments.n
    )
    return slope, past, together * slope


def _past_sum(m: Moments, v: int, u: int) -> int:
    return m.v * u - m.u * v


def _past_square(m: Moments, v: int, u: int) -> int:
    return u * u * m.vv - 2 * u * v * m.vu + v * v * m.uu


def _effect(log_ratio: float) -> float:
    """Return the relative effect; beyond all reason is inf."""
    return expm1(log_ratio) if log_ratio < 700 else float("inf")


def unexplained(moments: Moments) -> float:
    """Return the share of the variance that the units' past leaves; 1 where too few have one."""
    m = moments
    if effective_number(m.u, m.uu) < LEAST_UNITS:
        return 1.0
    product = m.x * (m.u * m.yv - m.v * m.yu) - m.y * (m.u * m.xv - m.v * m.xu)
    squares = _past_square(m, m.v, m.u) * influence_square(m)
    return 1 - product**2 / squares if squares else 1.0
