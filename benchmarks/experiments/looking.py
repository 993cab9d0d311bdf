"""What one experiment shows to somebody who looks after every observation."""

from dataclasses import dataclass
from math import log, log1p

import numpy as np

from apps.statistics.comparing import Comparison, Kind, compare
from benchmarks.experiments.running import (
    Observations,
    Running,
    mean_looks,
    rate_evidence,
    running_moments,
)


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
        if self.kind == "rate":
            return self._first(
                None, lambda found: found.p_value is not None and found.p_value < self.alpha
            )
        return self._first_of_means(0.0)

    def first_miss(self, truth: tuple[float, float]) -> int | None:
        """Return the first look at which the interval of the relative effect, or of the difference
        of rates, leaves out what is true. truth: the metric in control and treatment."""
        effect = truth[1] / truth[0] - 1
        if self.kind != "rate":
            return self._first_of_means(log1p(effect))
        return self._first(truth, lambda found: not _holds(found, truth))

    def _first_of_means(self, center: float) -> int | None:
        looks = mean_looks(
            self.control, self.treatment,
            is_log=self.kind == "log_mean", planned_units=self.planned_units,
        )  # fmt: skip
        with np.errstate(invalid="ignore", divide="ignore"):
            beyond = np.flatnonzero(np.abs(looks.estimate - center) > looks.reach(self.alpha))
        return int(beyond[0]) if len(beyond) else None

    def _first(self, rates, is_out) -> int | None:
        with np.errstate(invalid="ignore", divide="ignore"):
            evidence = rate_evidence(
                self.control, self.treatment, planned_units=self.planned_units, rates=rates
            )
        for look in np.flatnonzero(evidence >= -log(self.alpha) - 1e-6):
            if is_out(self.at(int(look))):
                return int(look)
        return None


def _holds(found: Comparison, truth: tuple[float, float]) -> bool:
    difference = truth[1] - truth[0]
    assert found.low is not None and found.high is not None
    assert found.difference_low is not None and found.difference_high is not None
    return (
        found.low <= truth[1] / truth[0] - 1 <= found.high
        and found.difference_low <= difference <= found.difference_high
    )
