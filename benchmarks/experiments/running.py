"""The formulas of apps.statistics over all looks at once, with numpy.

Observations come one after another, each of some unit; there is a look after every one. For means
this is the whole test. For rates it is a screen: what it lets pass cannot be an alarm, and what it
holds is put before ``compare`` itself. A test shows that both agree with ``compare``.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apps.statistics.boundary import MEANS_RATIO, RATES_RATIO
from apps.statistics.means import LEAST_UNITS, MICRO, USED_ALPHA
from apps.statistics.moments import Moments

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NAMES: Final = tuple(field.name for field in fields(Moments))
STIRLING: Final = (1 / 12, -1 / 360, 1 / 1260)
SHIFT: Final = 7
N_ANGLES: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """One experiment. unit, y: of each observation; arm (0 control, 1 treatment), v, u: of each
    unit. Every observation counts 1 in the denominator."""

    unit: Ints
    y: Floats
    arm: Ints
    v: Floats
    u: Floats

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True, slots=True)
class Running:
    """The moments of one arm after each observation."""

    n: Floats
    y: Floats
    x: Floats
    v: Floats
    u: Floats
    yy: Floats
    yx: Floats
    yv: Floats
    yu: Floats
    xx: Floats
    xv: Floats
    xu: Floats
    vv: Floats
    vu: Floats
    uu: Floats

    def at(self, look: int) -> Moments:
        return Moments(*(round(float(sums[look])) for sums in astuple(self)))


def running_moments(seen: Observations) -> tuple[Running, Running]:
    """Return both arms' moments after each observation, units being replaced as they grow."""
    old_y, old_x = _totals_before(seen)
    y, x = old_y + seen.y, old_x + 1
    first = (old_x == 0).astype(np.float64)
    v, u = seen.v[seen.unit], seen.u[seen.unit]
    nothing = np.zeros(len(seen))
    has_past = bool(seen.u.any())
    steps = {
        "n": first, "y": seen.y, "x": np.ones(len(seen)), "v": first * v, "u": first * u,
        "yy": y * y - old_y * old_y, "yx": y * x - old_y * old_x, "yv": seen.y * v,
        "yu": seen.y * u, "xx": x * x - old_x * old_x, "xv": v, "xu": u,
        "vv": first * v * v, "vu": first * v * u, "uu": first * u * u,
    }  # fmt: skip
    arms = seen.arm[seen.unit]
    return tuple(  # type: ignore[return-value]
        Running(
            *(
                np.cumsum(steps[name] * (arms == arm))
                if has_past or not {"u", "v"} & set(name)
                else nothing
                for name in NAMES
            )
        )
        for arm in (0, 1)
    )


def _totals_before(seen: Observations) -> tuple[Floats, Floats]:
    """Return what each observation's unit had before it: its sum and its number."""
    order = np.argsort(seen.unit, kind="stable")
    units, values = seen.unit[order], seen.y[order]
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]])
    lengths = np.diff(np.r_[starts, len(units)])
    before = np.cumsum(values) - values
    y, x = np.empty(len(seen)), np.empty(len(seen))
    y[order] = before - np.repeat(before[starts], lengths)
    x[order] = np.arange(len(units)) - np.repeat(starts, lengths)
    return y, x


@dataclass(frozen=True, slots=True)
class MeanLooks:
    """After each observation, on the scale of logs: both arms and their standard errors, and the
    ratio of ``apps.statistics.boundary``; nan where nothing is said."""

    values: tuple[Floats, Floats]
    errors: tuple[Floats, Floats]
    ratio: Floats

    @property
    def estimate(self) -> Floats:
        return self.values[1] - self.values[0]

    @property
    def error(self) -> Floats:
        error: Floats = np.hypot(*self.errors)
        return error

    def radius(self, alpha: float) -> Floats:
        rise, spent = 1 + self.ratio, alpha * USED_ALPHA
        with np.errstate(divide="ignore", invalid="ignore"):
            radius: Floats = np.sqrt(rise / self.ratio * np.log(rise / spent**2))
        return radius

    def farthest(self, alpha: float, *, sign: int) -> Floats:
        """Return the lower (-1) or upper (1) bound of the difference."""
        radius = sign * self.radius(alpha)
        far = np.full(len(self.ratio), -np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            for angle in np.linspace(0, np.pi / 2, N_ANGLES):
                control = np.exp(self.values[0] - radius * self.errors[0] * np.cos(angle))
                treatment = np.exp(self.values[1] + radius * self.errors[1] * np.sin(angle))
                far = np.fmax(far, sign * (treatment - control))
        return sign * far


def mean_looks(
    control: Running, treatment: Running, *, is_log: bool, planned_units: int
) -> MeanLooks:
    arms = control, treatment
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = [arm.y / arm.x / MICRO if is_log else np.log(arm.y / arm.x) for arm in arms]
        factors = [arm.n / arm.x**2 / MICRO if is_log else arm.n / arm.x / arm.y for arm in arms]
        is_enough = np.ones(len(control.n), dtype=bool)
        for arm in arms:
            is_enough &= arm.x**2 >= LEAST_UNITS * np.maximum(arm.xx, 1)
            if not is_log:
                is_enough &= (arm.y > 0) & (arm.y**2 >= LEAST_UNITS * arm.yy)
        squares = [f**2 * _square(arm) for arm, f in zip(arms, factors, strict=True)]
        if control.u[-1]:
            _take_out_past(arms, factors, levels, squares)
        levels[1] = np.where(is_enough & (squares[0] + squares[1] > 0), levels[1], np.nan)
        common = (squares[0] + squares[1]) / (control.n + treatment.n - 2)
        errors = [
            np.sqrt(np.maximum(s / (arm.n - 1), common) / arm.n)
            for arm, s in zip(arms, squares, strict=True)
        ]
        units = 4 * control.n * treatment.n / (control.n + treatment.n)
    return MeanLooks(
        (levels[0], levels[1]), (errors[0], errors[1]), MEANS_RATIO * units / planned_units
    )


def _square(arm: Running) -> Floats:
    return arm.x**2 * arm.yy - 2 * arm.x * arm.y * arm.yx + arm.y**2 * arm.xx


def _take_out_past(
    arms: tuple[Running, Running],
    factors: Sequence[Floats],
    levels: list[Floats],
    squares: list[Floats],
) -> None:
    """Change levels and sums of squares as ``apps.statistics.means.estimate`` does."""
    v, u = arms[0].v + arms[1].v, arms[0].u + arms[1].u
    together, spread = np.zeros(len(v)), np.zeros(len(v))
    is_known = np.ones(len(v), dtype=bool)
    pasts = []
    for m, factor in zip(arms, factors, strict=True):
        is_known &= (m.uu > 0) & (m.u**2 >= LEAST_UNITS * m.uu)
        total = m.v * u - m.u * v
        square = u * u * m.vv - 2 * u * v * m.vu + v * v * m.uu - total**2 / m.n
        product = m.x * (u * m.yv - v * m.yu) - m.y * (u * m.xv - v * m.xu)
        product = product * factor
        together += product / (m.n * (m.n - 1))
        spread += square / (m.n * (m.n - 1))
        pasts.append((total / m.n, square, product))
    is_known &= spread > 0
    slope = np.where(is_known, together / np.where(is_known, spread, 1), 0.0)
    for index, (mean, square, product) in enumerate(pasts):
        more = slope * (slope * square - 2 * product)
        squares[index] = squares[index] + np.where(is_known, more, 0)
        levels[index] = levels[index] - np.where(is_known, slope * mean, 0)


def rate_evidence(
    control: Running,
    treatment: Running,
    *,
    planned_units: int,
    rates: tuple[float | Floats, float | Floats] | None = None,
) -> Floats:
    """Return the log of the evidence against a pair of rates after each observation.

    Without rates: against equal ones, at the rate of both arms together; the evidence against the
    best of the equal ones, which is what counts, is not more.
    """
    arms = (control, treatment)
    effects = [_design_effect(arm) for arm in arms]
    trials = [arm.x / effect for arm, effect in zip(arms, effects, strict=True)]
    prior = planned_units / 2 * sum(trials) / (control.n + treatment.n) / RATES_RATIO
    pooled = sum(arm.y / e for arm, e in zip(arms, effects, strict=True)) / sum(trials)
    # A rate of 0 or 1 is best where nothing else was seen, and its evidence is finite there.
    pooled = np.clip(pooled, 1e-300, 1 - 1e-16)
    total = np.zeros(len(control.n))
    for index, arm in enumerate(arms):
        rate = pooled if rates is None else np.broadcast_to(rates[index], arm.n.shape)
        successes = arm.y / effects[index]
        failures = trials[index] - successes
        a, b = prior * rate + 0.5, prior * (1 - rate) + 0.5
        value = log_gamma(a + successes) + log_gamma(b + failures) - log_gamma(a) - log_gamma(b)
        value += log_gamma(prior + 1) - log_gamma(prior + 1 + trials[index])
        total += value - successes * np.log(rate) - failures * np.log1p(-rate)
    return total


def _design_effect(arm: Running) -> Floats:
    x = np.maximum(arm.x, 1)
    together = np.maximum(arm.xx, 1) / x
    effect: Floats = np.maximum(
        1.0, (_square(arm) / x**2 + together) / (arm.y * (x - arm.y) / x + 1)
    )
    return effect


def log_gamma(x: Floats) -> Floats:
    """Stirling's series, after a shift; for x of 1/2 and more, to 1e-10."""
    product = x.copy()
    for step in range(1, SHIFT):
        product *= x + step
    far = x + SHIFT
    inverse = 1 / far
    square = inverse * inverse
    series = inverse * (STIRLING[0] + square * (STIRLING[1] + square * STIRLING[2]))
    result: Floats = (far - 0.5) * np.log(far) - far + 0.9189385332046727 + series - np.log(product)
    return result
