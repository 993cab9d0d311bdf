"""What one experiment shows to somebody who looks after every observation."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

from apps.statistics.comparing import Comparison, Kind, compare
from benchmarks.experiments.running import (
    Floats,
    Ints,
    Observations,
    Running,
    mean_looks,
    rate_evidence,
    running_moments,
)

TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Looks:
    """One experiment's arms at all looks, and how they are compared."""

    control: Running
    treatment: Running
    kind: Kind
    planned_units: int
    alpha: float

    @classmethod
    def of(cls, seen: Observations, *, kind: Kind, planned_units: int, alpha: float) -> "Looks":
        return cls(*running_moments(seen), kind, planned_units, alpha)

    def at(self, look: int) -> Comparison:
        return compare(
            self.control.at(look),
            self.treatment.at(look),
            kind=self.kind,
            alpha=self.alpha,
            planned_units=self.planned_units,
        )

    def first_alarm(self) -> int | None:
        """Return the first look at which no difference is refuted."""
        if self.kind != "rate":
            return self._first_outside(0.0)
        return self._first(
            np.flatnonzero(self._evidence() >= self._enough),
            lambda found: found.p_value is not None and found.p_value < self.alpha,
        )

    def first_miss(self, truth: tuple[float, float]) -> int | None:
        """Return the first look at which the interval of the relative effect or of the difference
        leaves out what is true. truth: the metric in control and treatment."""
        if self.kind != "rate":
            return self._first_outside(log(truth[1] / truth[0]), truth[1] - truth[0])
        if not (self._evidence(truth) >= self._enough).any():
            return None
        # What is true is left out only if all pairs as far from each other are refuted: a few of
        # them rule out nearly all looks, and the others are put before ``compare``.
        shifts = [(truth[0] + d, truth[1] + d) for d in self._nearer(truth)]
        factors = [(truth[0] * f, truth[1] * f) for f in 1 + self._nearer(truth) / truth[0]]
        is_out = np.zeros(len(self.control.n), dtype=bool)
        for pairs in (shifts, factors):
            evidence = [
                self._evidence((np.clip(a, TINY, 1), np.clip(b, TINY, 1))) for a, b in pairs
            ]
            is_out |= np.min(evidence, axis=0) >= self._enough
        return self._first(np.flatnonzero(is_out), lambda found: not _holds(found, truth))

    def _nearer(self, truth: tuple[float, float]) -> Floats:
        """Return some distances, from nothing to where both arms' rates together would be."""
        control, treatment = self.control, self.treatment
        with np.errstate(invalid="ignore"):
            expected = control.x * truth[0] + treatment.x * truth[1]
            distance = (control.y + treatment.y - expected) / (control.x + treatment.x)
        nearest: Floats = np.multiply.outer(np.array([0.0, 0.5, 1.0, 1.5]), distance)
        return nearest

    @property
    def _enough(self) -> float:
        return -log(self.alpha) - 1e-6

    def _evidence(self, rates: tuple[float | Floats, float | Floats] | None = None) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return rate_evidence(
                self.control, self.treatment, planned_units=self.planned_units, rates=rates
            )

    def _first_outside(self, effect: float, difference: float | None = None) -> int | None:
        looks = mean_looks(
            self.control, self.treatment,
            is_log=self.kind == "log_mean", planned_units=self.planned_units,
        )  # fmt: skip
        with np.errstate(invalid="ignore"):
            away = np.abs(looks.estimate - effect)
            is_out = away > looks.radius(self.alpha) * looks.error
            if difference is not None:
                is_out |= looks.farthest(self.alpha, sign=-1) > difference
                is_out |= looks.farthest(self.alpha, sign=1) < difference
                is_out &= ~np.isnan(looks.estimate)
        return int(np.argmax(is_out)) if is_out.any() else None

    def _first(self, looks: Ints, is_out: Callable[[Comparison], bool]) -> int | None:
        return next((int(look) for look in looks if is_out(self.at(int(look)))), None)


def _holds(found: Comparison, truth: tuple[float, float]) -> bool:
    difference = truth[1] - truth[0]
    assert found.low is not None and found.high is not None
    assert found.difference_low is not None and found.difference_high is not None
    return (
        found.low <= truth[1] / truth[0] - 1 <= found.high
        and found.difference_low <= difference <= found.difference_high
    )
