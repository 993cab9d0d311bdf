"""Rates of successes: a confidence sequence for two Bernoulli streams that needs no large sample.

For every pair (a, b) of true rates, the likelihood of an arm under a beta mixture centred there,
over its likelihood at the rate itself, is a martingale that starts at 1, and so is the product of
both arms (Robbins, "Statistical methods related to the law of the iterated logarithm", 1970). The
pairs whose product has not reached 1 / alpha hold the true one at every look, with probability
1 - alpha (Ville). No difference is refuted when every pair (p, p) is: universal inference
(Wasserman, Ramdas, Balakrishnan, PNAS 2020) with a numerator of its own for each null, which
leaves out what a numerator common to all would pay for not knowing p.

Exact where trials are independent and a unit has one. Units with several, which may fail together,
are counted as so many independent trials as tell as much (Rao, Scott, Biometrics 1992).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import asin, cos, exp, inf, lgamma, log, pi, sin, sqrt
from typing import Final

from apps.statistics.boundary import RATES_RATIO
from apps.statistics.bounds import NOTHING, Bounds
from apps.statistics.means import influence_square
from apps.statistics.moments import Moments
from apps.statistics.searching import least_at

N_STEPS: Final = 24  # of a curve, and of how the arms share the distance
SHARES: Final = tuple(
    (sin(pi / 2 * i / N_STEPS), cos(pi / 2 * i / N_STEPS)) for i in range(N_STEPS + 1)
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One arm as independent trials, and the weight of the mixture's prior, in trials."""

    successes: float
    trials: float
    prior: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One side of a stream's evidence: how far the rate is at which it has risen by so much.

    roots: square roots of the rise above the least, ascending from 0; angles: asin(sqrt(rate)).
    """

    roots: Sequence[float]
    angles: Sequence[float]

    def rate(self, root: float) -> float:
        at = min(max(bisect_left(self.roots, root), 1), len(self.roots) - 1)
        left, right = self.roots[at - 1], self.roots[at]
        share = min(max((root - left) / (right - left), 0.0), 1.0) if right > left else 1.0
        angle = self.angles[at - 1] + share * (self.angles[at] - self.angles[at - 1])
        return sin(angle) ** 2


def compare_rates(
    control: Moments, treatment: Moments, *, alpha: float, planned_units: int
) -> Bounds:
    """Bound the difference and the quotient of two rates; nothing where an arm has no trial.

    Raises ValueError where there are more successes than trials, or fewer than none.
    """
    if not all(0 <= arm.y <= arm.x for arm in (control, treatment)):
        raise ValueError("a rate has between 0 and x successes")
    if not (control.x and treatment.x):
        return NOTHING
    base, other = streams(control, treatment, planned_units=planned_units)
    of_base, of_other = evidence(base), evidence(other)
    lowest_base, lowest_other = _least_angle(base, of_base), _least_angle(other, of_other)
    budget = -log(alpha) - of_base(lowest_base) - of_other(lowest_other)
    base_down, base_up = _curves(of_base, lowest_base, budget)
    other_down, other_up = _curves(of_other, lowest_other, budget)
    a, b = control.y / control.x, treatment.y / treatment.x
    return Bounds(
        effect=b / a - 1 if a else (inf if b else 0.0),
        low=1 / _most(base_up, other_down, _quotient) - 1,
        high=_most(other_up, base_down, _quotient) - 1,
        difference=b - a,
        difference_low=-_most(base_up, other_down, _difference),
        difference_high=_most(other_up, base_down, _difference),
        p_value=_p_value(of_base, of_other, lowest_base, lowest_other),
    )


def streams(control: Moments, treatment: Moments, *, planned_units: int) -> tuple[Stream, Stream]:
    """Return both arms as independent trials, with the prior that suits the plan."""
    effects = design_effect(control), design_effect(treatment)
    trials = control.x / effects[0], treatment.x / effects[1]
    per_unit = sum(trials) / (control.n + treatment.n)
    prior = planned_units / 2 * per_unit / RATES_RATIO
    return (
        Stream(control.y / effects[0], trials[0], prior),
        Stream(treatment.y / effects[1], trials[1], prior),
    )


def design_effect(moments: Moments) -> float:
    """Return how many trials of one arm tell as much as one independent trial; 1 at least.

    The variance between units over that of independent trials. One success more is added as if
    all trials of its unit had succeeded with it: before the first one nothing is known of how they
    cluster, and this is the worst. With one trial a unit it is exactly 1.
    """
    y, x = moments.y, moments.x
    together = moments.xx / x
    between = influence_square(moments) / x**2
    return max(1.0, (between + together) / (y * (x - y) / x + 1))


def evidence(stream: Stream) -> Callable[[float], float]:
    """Return the log of the martingale, mixture over likelihood, at asin(sqrt(rate)).

    The mixture is over Beta(prior * rate + 1/2, prior * (1 - rate) + 1/2).
    """
    successes, prior = stream.successes, stream.prior
    failures = stream.trials - successes
    constant = lgamma(prior + 1) - lgamma(prior + 1 + stream.trials)

    def at(angle: float) -> float:
        rate, rest = sin(angle) ** 2, cos(angle) ** 2
        a, b = prior * rate + 0.5, prior * rest + 0.5
        value = constant + lgamma(a + successes) + lgamma(b + failures) - lgamma(a) - lgamma(b)
        if successes:
            value -= successes * log(rate) if rate else -inf
        if failures:
            value -= failures * log(rest) if rest else -inf
        return value

    return at


def _least_angle(stream: Stream, at: Callable[[float], float]) -> float:
    """Return where the evidence is least: near the rate observed."""
    middle = asin(sqrt(min(stream.successes / stream.trials, 1.0)))
    if stream.successes <= 0 or stream.successes >= stream.trials:
        return middle
    reach = 1 / sqrt(stream.trials)
    return least_at(at, max(middle - reach, 0.0), min(middle + reach, pi / 2))


def _curves(at: Callable[[float], float], least: float, budget: float) -> tuple[Curve, Curve]:
    """Return both sides of the evidence, as far as it rises by the budget."""
    return _curve(at, least, 0.0, budget), _curve(at, least, pi / 2, budget)


def _curve(at: Callable[[float], float], least: float, edge: float, budget: float) -> Curve:
    floor = at(least)
    inside, outside = least, edge
    if at(edge) - floor > budget:
        while abs(outside - inside) > 1e-4 * abs(outside - least):
            middle = (inside + outside) / 2
            if at(middle) - floor < budget:
                inside = middle
            else:
                outside = middle
    angles = [least + (outside - least) * i / N_STEPS for i in range(N_STEPS + 1)]
    roots = [0.0]
    for angle in angles[1:-1]:
        roots.append(max(roots[-1], sqrt(max(at(angle) - floor, 0.0))))
    roots.append(max(roots[-1], sqrt(budget)))
    return Curve(roots, angles)


def _difference(above: float, below: float) -> float:
    return above - below


def _quotient(above: float, below: float) -> float:
    return above / below if below else inf


def _most(up: Curve, down: Curve, value: Callable[[float, float], float]) -> float:
    """Return the most that a rate on ``up`` has above one on ``down``, sharing the budget."""
    reach = max(up.roots[-1], down.roots[-1])
    tried = [value(up.rate(reach * a), down.rate(reach * b)) for a, b in SHARES]
    at = max(range(len(tried)), key=tried.__getitem__)
    if not 0 < at < len(tried) - 1 or tried[at] == inf:
        return tried[at]
    before, here, after = tried[at - 1 : at + 2]
    bend = 2 * here - before - after
    return here + (after - before) ** 2 / (8 * bend) if bend > 0 and after < inf > before else here


def _p_value(
    of_base: Callable[[float], float], of_other: Callable[[float], float], low: float, high: float
) -> float:
    """Return the p-value of equal rates: one over the least evidence against any such rate."""

    def both(angle: float) -> float:
        return of_base(angle) + of_other(angle)

    return min(1.0, exp(-both(least_at(both, low, high))))
