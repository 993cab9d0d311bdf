"""Sums of what requests said, by the side and the step that they were of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from apps.rollouts.types import Metric
from apps.statistics.moments import Moments

RATES: Final[tuple[Metric, ...]] = ("error_rate", "empty_rate", "thumbs_down_rate")
TIMES: Final[tuple[Metric, ...]] = ("ttft", "itl")
NOTHING: Final = Moments()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Requests of one side of one step. n_requests: all that came; those whose client left are in
    no sum. sums: metric → moments with a request as the unit: 0 or 1 of 1 for rates,
    round(1e6 ln(microseconds)) of 1 for times."""

    n_requests: int = 0
    n_failed: int = 0
    sums: Mapping[str, Moments] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, metric: str) -> Moments:
        return self.sums.get(metric, NOTHING)

    @property
    def n_judged(self) -> int:
        """Requests that were answered or failed."""
        return self.of("error_rate").n

    def __add__(self, other: "Tally") -> "Tally":
        names = {**self.sums, **other.sums}
        return Tally(
            n_requests=self.n_requests + other.n_requests,
            n_failed=self.n_failed + other.n_failed,
            sums={name: self.of(name) + other.of(name) for name in names},
        )
