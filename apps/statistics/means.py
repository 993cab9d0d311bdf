"""Means of units with any spread: an asymptotic confidence sequence for their quotient.

The metric of an arm is the quotient of two sums over units (delta method: what a unit adds to the
error of log(Y/X) is y/Y - x/X). Where units have a past, what it explains is taken out (CUPED:
Deng, Xu, Kohavi, Walker, WSDM 2013), the past being a quotient that is linearised likewise. The
sequence is that of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 52 (2024), theorem 2.2.
"""

from dataclasses import dataclass
from math import cos, exp, hypot, inf, log, pi, sin, sqrt
from typing import Final

from apps.statistics.boundary import MEANS_RATIO, always_valid_p, equal_units, radius
from apps.statistics.bounds import NOTHING, Bounds
from apps.statistics.moments import Moments
from apps.statistics.searching import least_at

MICRO: Final = 1e6  # logs are kept as round(1e6 * ln(value))
# Fewer are no large sample. Chosen by benchmarks/experiments: docs/statistics.md has the figures.
LEAST_UNITS: Final = 50
LEAST_UNITS_OF_ANY_SIGN: Final = 2000  # for a difference of means that are hardly or not positive
USED_ALPHA: Final = 0.9  # the share of the level that is spent; the rest is for not being normal


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm on some scale: its value there, and what a unit's y X - x Y moves it by."""

    moments: Moments
    value: float
    factor: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Both arms on some scale, adjusted if ``is_reduced``, with their standard errors."""

    values: tuple[float, float]
    errors: tuple[float, float]
    is_reduced: bool

    @property
    def difference(self) -> float:
        return self.values[1] - self.values[0]

    @property
    def error(self) -> float:
        return hypot(*self.errors)


def compare_means(
    control: Moments, treatment: Moments, *, is_log: bool, alpha: float, planned_units: int
) -> Bounds:
    """Bound the quotient and the difference of two means, geometric ones if ``is_log``."""
    arms = (control, treatment)
    is_relative = all(has_logarithm(arm, is_log=is_log) for arm in arms)
    least = LEAST_UNITS if is_relative else LEAST_UNITS_OF_ANY_SIGN
    if not all(effective_number(arm.x, arm.xx) >= least for arm in arms):
        return NOTHING
    found = estimate(*(_logs(arm, is_log=is_log) if is_relative else _plain(arm) for arm in arms))
    if found is None:
        return NOTHING
    ratio = MEANS_RATIO * equal_units(control.n, treatment.n) / planned_units
    reach = radius(ratio, alpha=alpha * USED_ALPHA)
    p_value = min(1.0, always_valid_p(found.difference / found.error, ratio) / USED_ALPHA)
    low, high = (found.difference + sign * reach * found.error for sign in (-1, 1))
    if not is_relative:
        return Bounds(
            effect=None, low=None, high=None,
            difference=found.difference, difference_low=low, difference_high=high,
            p_value=p_value, is_reduced=found.is_reduced,
        )  # fmt: skip
    return Bounds(
        effect=_exp(found.difference) - 1,
        low=_exp(low) - 1,
        high=_exp(high) - 1,
        difference=_exp(found.values[1]) - _exp(found.values[0]),
        difference_low=_farthest(found, reach, sign=-1),
        difference_high=_farthest(found, reach, sign=1),
        p_value=p_value,
        is_reduced=found.is_reduced,
    )


def _farthest(found: Estimate, reach: float, *, sign: int) -> float:
    """Return the least or the most that treatment minus control is over the ellipse of pairs of
    logs that are so many standard errors away.

    Its tails are those of the logs, as long as the data's; and it leaves out 0 just when the
    relative effect does.
    """

    def difference(angle: float) -> float:
        control = found.values[0] - sign * reach * found.errors[0] * cos(angle)
        treatment = found.values[1] + sign * reach * found.errors[1] * sin(angle)
        return _exp(treatment) - _exp(control)

    return difference(least_at(lambda angle: -sign * difference(angle), 0.0, pi / 2))


def effective_number(total: int, squares: int) -> float:
    """Return how many equal units a sum is as good as, by Kish: few with nearly all are few."""
    return total**2 / squares if squares else 0.0


def has_logarithm(moments: Moments, *, is_log: bool) -> bool:
    """Say whether an arm's level, on the scale of logs, is surely one and about normal.

    With long tails that takes more units: of log-normal values with sigma 1 about 136 are as good
    as 50 equal ones, with sigma 1.5 about 475.
    """
    if is_log:
        return True
    return moments.y > 0 and effective_number(moments.y, moments.yy) >= LEAST_UNITS


def estimate(control: Arm, treatment: Arm) -> Estimate | None:
    """Adjust both arms by their past, where there is one; None where nothing varies.

    A unit's influence is factor (y X - x Y), whose sum over the arm is 0 and whose products are
    integers: nothing is lost where the numbers are large and their spread is small. No arm is
    taken to spread less than both together: in a small one the rare large values may not have
    come yet, and then both its mean and its spread are too small.
    """
    arms = (control, treatment)
    past = _past(*arms)
    values, squares = [], []
    for index, arm in enumerate(arms):
        values.append(arm.value)
        squares.append(arm.factor**2 * influence_square(arm.moments))
        if past:
            values[-1] -= past.slope * past.means[index]
            squares[-1] += past.slope * (past.slope * past.squares[index])
            squares[-1] -= 2 * past.slope * past.products[index]
    common = sum(squares) / (control.moments.n + treatment.moments.n - 2)
    if not common > 0:
        return None
    errors = [
        sqrt(max(square / (arm.moments.n - 1), common) / arm.moments.n)
        for arm, square in zip(arms, squares, strict=True)
    ]
    return Estimate((values[0], values[1]), (errors[0], errors[1]), past is not None)


def _plain(moments: Moments) -> Arm:
    """Return an arm on the scale of its own unit."""
    return Arm(moments, moments.y / moments.x, moments.n / moments.x**2)


def _logs(moments: Moments, *, is_log: bool) -> Arm:
    """Return an arm on the scale of logs."""
    if is_log:
        return Arm(moments, moments.y / moments.x / MICRO, moments.n / moments.x**2 / MICRO)
    return Arm(moments, log(moments.y / moments.x), moments.n / (moments.x * moments.y))


def influence_square(moments: Moments) -> int:
    """Return the sum of (y X - x Y)^2 over the units."""
    m = moments
    return m.x**2 * m.yy - 2 * m.x * m.y * m.yx + m.y**2 * m.xx


@dataclass(frozen=True, slots=True)
class Past:
    """Of each arm: the mean of its units' past, the sum of its squares about that, and of its
    products with the influences; and one slope for both."""

    slope: float
    means: tuple[float, ...]
    squares: tuple[float, ...]
    products: tuple[float, ...]


def _past(control: Arm, treatment: Arm) -> Past | None:
    """Return what the units' past says; None where too few have one.

    The past of a unit is v U - u V, with U and V of both arms together: 0 for units without one.
    The slope is that which leaves the least variance of the difference.
    """
    arms = (control, treatment)
    if any(effective_number(arm.moments.u, arm.moments.uu) < LEAST_UNITS for arm in arms):
        return None
    v, u = (sum(getattr(arm.moments, name) for arm in arms) for name in ("v", "u"))
    means, squares, products, weights = [], [], [], []
    for arm in arms:
        m = arm.moments
        total = _past_sum(m, v, u)
        means.append(total / m.n)
        squares.append((m.n * _past_square(m, v, u) - total**2) / m.n)
        products.append(arm.factor * _past_product(m, v, u))
        weights.append(m.n * (m.n - 1))
    spread = sum(square / weight for square, weight in zip(squares, weights, strict=True))
    if spread <= 0:
        return None
    slope = sum(p / weight for p, weight in zip(products, weights, strict=True)) / spread
    return Past(slope, tuple(means), tuple(squares), tuple(products))


def _past_product(m: Moments, v: int, u: int) -> int:
    """Return the sum over the units of (y X - x Y)(v U - u V)."""
    return m.x * (u * m.yv - v * m.yu) - m.y * (u * m.xv - v * m.xu)


def _past_sum(m: Moments, v: int, u: int) -> int:
    return m.v * u - m.u * v


def _past_square(m: Moments, v: int, u: int) -> int:
    return u * u * m.vv - 2 * u * v * m.vu + v * v * m.uu


def _exp(value: float) -> float:
    """Return e to a power; beyond all reason it is inf."""
    return exp(value) if value < 700 else inf


def unexplained(moments: Moments) -> float:
    """Return the share of the variance that the units' past leaves; 1 where too few have one."""
    m = moments
    if effective_number(m.u, m.uu) < LEAST_UNITS:
        return 1.0
    product = _past_product(m, m.v, m.u)
    squares = _past_square(m, m.v, m.u) * influence_square(m)
    return 1 - product**2 / squares if squares else 1.0
