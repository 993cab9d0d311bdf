"""What experiments are about: latencies with long tails, rare errors, people who come again."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

import numpy as np

from apps.statistics.comparing import Kind
from benchmarks.experiments.running import Floats, Ints, Observations

Generator = np.random.Generator
LATENCY = 13.0  # log of about 0.44 s in microseconds


def latency_pair(effect: float, *, sigma: float) -> tuple[float, float]:
    """Return the true means of ``latency`` without and with an effect, in microseconds; with a
    sigma of 0 the geometric ones."""
    usual = exp(LATENCY + sigma**2 / 2)
    return usual, usual * (1 + effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A kind of experiment.

    values: draws the observations of units of arms, given (generator, unit of each observation,
    arm of each unit), and each unit's past, a sum and a number. per_unit: observations of a unit
    on average; order: whose turn it is. shares: of control and treatment among the units, those of
    the first third, the second and the last where they change.
    """

    kind: Kind
    values: Callable[[Generator, Ints, Ints], tuple[Floats, Floats, Floats]]
    per_unit: float = 1.0
    is_crowd_fixed: bool = False
    treatment_shares: tuple[float, ...] = (0.5,)

    def draw(self, generator: Generator, n_units: int) -> Observations:
        arm = np.concatenate(
            [
                (generator.random(len(part)) < share).astype(np.int64)
                for part, share in zip(
                    np.array_split(np.arange(n_units), len(self.treatment_shares)),
                    self.treatment_shares,
                    strict=True,
                )
            ]
        )
        unit = self._turns(generator, n_units)
        y, v, u = self.values(generator, unit, arm)
        return Observations(unit=unit, y=y, arm=arm, v=v, u=u)

    def _turns(self, generator: Generator, n_units: int) -> Ints:
        """Return the unit of each observation. People come one after another and come again within
        the time in which a tenth of all arrive; or all are there from the beginning."""
        if self.per_unit == 1:
            return np.arange(n_units)
        times = generator.geometric(1 / self.per_unit, n_units)
        unit = np.repeat(np.arange(n_units), times)
        begin = 0.0 if self.is_crowd_fixed else unit / n_units
        stay = 1.0 if self.is_crowd_fixed else 0.1
        at = begin + generator.random(len(unit)) * stay
        return unit[np.argsort(at, kind="stable")]


def latency(
    *, sigma: float, effect: float = 0.0, person: float = 0.0, is_log: bool = False,
    has_past: bool = False,
) -> Callable[[Generator, Ints, Ints], tuple[Floats, Floats, Floats]]:  # fmt: skip
    """Log-normal microseconds; ``person`` is the spread between units, in logs as ``sigma`` is."""

    def values(generator: Generator, unit: Ints, arm: Ints) -> tuple[Floats, Floats, Floats]:
        own = generator.normal(0, person, len(arm)) if person else np.zeros(len(arm))

        def logs(of: Ints) -> Floats:
            return LATENCY + own[of] + generator.normal(0, sigma, len(of))

        def written(value: Floats) -> Floats:
            return np.rint(1e6 * value) if is_log else np.rint(np.exp(value))

        y = written(logs(unit) + np.log1p(effect) * arm[unit])
        v, u = np.zeros(len(arm)), np.zeros(len(arm))
        if has_past:
            u = generator.geometric(0.25, len(arm)) * (generator.random(len(arm)) < 0.8)
            before = np.repeat(np.arange(len(arm)), u)
            v = np.bincount(before, weights=written(logs(before)), minlength=len(arm))
        return y, v, u.astype(np.float64)

    return values


def errors(
    *, rates: tuple[float, float], together: float = 0.0
) -> Callable[[Generator, Ints, Ints], tuple[Floats, Floats, Floats]]:
    """Errors at a rate in each arm. together: correlation of two requests of the same unit, whose
    own rates are beta distributed."""

    def values(generator: Generator, unit: Ints, arm: Ints) -> tuple[Floats, Floats, Floats]:
        own = np.asarray(rates)[arm]
        if together:
            weight = 1 / together - 1
            own = generator.beta(own * weight, (1 - own) * weight)
        y = (generator.random(len(unit)) < own[unit]).astype(np.float64)
        return y, np.zeros(len(arm)), np.zeros(len(arm))

    return values
