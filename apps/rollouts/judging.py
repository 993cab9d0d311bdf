"""Whether the new version is worse than it may be, and whether a step has seen enough. Pure: from
sums and what was agreed on to a verdict, at any time and as often as one likes.

Each step begins with sums of its own, because the split, and with it the load of both sides, is
constant within a step only. Of a step each guardrail is a test of its own, so the level is shared
evenly among all of them (Bonferroni): an equal version is rolled back with probability alpha at
most, whenever and however often this looks (``apps.statistics``: confidence sequences). Intervals
are two-sided at that level although one side is read: half of it is not promised for rare events.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from apps.rollouts.tallies import RATES, Tally
from apps.rollouts.types import GuardrailSpec, StepSpec
from apps.statistics.comparing import Kind, compare, metric_value

_LEAST_PLANNED: Final = 100
_US_PER_MS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What a rollout is judged by. alpha: of the whole rollout, over all steps and guardrails."""

    steps: tuple[StepSpec, ...]
    guardrails: tuple[GuardrailSpec, ...]
    alpha: float

    @property
    def level(self) -> float:
        """What is left of alpha for one guardrail of one step."""
        return self.alpha / max(len(self.steps) * len(self.guardrails), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A guardrail at this moment. baseline, candidate: rates, or milliseconds; None without any
    request. low, high: how much worse the candidate is, as its tolerance counts it; None while
    nothing can be said. n_…: requests in them; k_…: those among them that a rate counts."""

    guardrail: GuardrailSpec
    baseline: float | None
    candidate: float | None
    low: float | None
    high: float | None
    n_baseline: int
    n_candidate: int
    k_baseline: int
    k_candidate: int

    @property
    def is_breached(self) -> bool:
        return self.low is not None and self.low > self.guardrail.tolerance


def judged(agreed: Agreed, step: int, *, baseline: Tally, candidate: Tally) -> list[Judged]:
    """Judge every guardrail of a step, in their order. baseline: beside which the candidate was, as
    ``reference_step`` says."""
    return [
        _judged(each, agreed, step, baseline=baseline, candidate=candidate)
        for each in agreed.guardrails
    ]


def breach(agreed: Agreed, step: int, *, baseline: Tally, candidate: Tally) -> Judged | None:
    """Return the breached guardrail to tell people of: the one of which most is known. An interval
    holds what was observed, so it is computed only where that is worse than allowed."""
    found = [
        _judged(each, agreed, step, baseline=baseline, candidate=candidate)
        for each in agreed.guardrails
        if _looks_worse(each, baseline=baseline, candidate=candidate)
    ]
    return max((each for each in found if each.is_breached), key=_excess, default=None)


def reference_step(agreed: Agreed, step: int) -> int | None:
    """Return whose requests of the old version a step is compared with: its own, or where all go to
    the new one those of the step before. Times then are not judged: the load is another."""
    if agreed.steps[step].percent < 100:
        return step
    return step - 1 if step else None


def planned_units(spec: StepSpec) -> int:
    """Return at how many requests the bounds of a step are to be narrowest: when the step may pass,
    as of two equal arms."""
    return max(_LEAST_PLANNED, round(4 * spec.min_requests * (1 - spec.percent / 100)))


def _judged(
    guardrail: GuardrailSpec, agreed: Agreed, step: int, *, baseline: Tally, candidate: Tally
) -> Judged:
    is_rate, spec = guardrail.metric in RATES, agreed.steps[step]
    if spec.percent == 100 and not is_rate:
        baseline = Tally()
    old, new = baseline.of(guardrail.metric), candidate.of(guardrail.metric)
    found = compare(
        old,
        new,
        kind="rate" if is_rate else "log_mean",
        alpha=agreed.level,
        planned_units=planned_units(spec),
    )
    unit = 1 if is_rate else _US_PER_MS
    return Judged(
        guardrail=guardrail,
        baseline=None if found.control is None else found.control / unit,
        candidate=None if found.treatment is None else found.treatment / unit,
        low=found.difference_low if is_rate else found.low,
        high=found.difference_high if is_rate else found.high,
        n_baseline=old.n,
        n_candidate=new.n,
        k_baseline=old.y if is_rate else 0,
        k_candidate=new.y if is_rate else 0,
    )


def _looks_worse(guardrail: GuardrailSpec, *, baseline: Tally, candidate: Tally) -> bool:
    kind: Kind = "rate" if guardrail.metric in RATES else "log_mean"
    old = metric_value(baseline.of(guardrail.metric), kind)
    new = metric_value(candidate.of(guardrail.metric), kind)
    if old is None or new is None:
        return False
    worse_by = new - old if kind == "rate" else new / old - 1
    return worse_by > guardrail.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a step still waits for before it has passed."""

    n_requests: int
    minutes: float

    @property
    def is_nothing(self) -> bool:
        return self.n_requests == 0 and self.minutes == 0


def missing(spec: StepSpec, *, candidate: Tally, since: datetime, now: datetime) -> Missing:
    waited = (now - since) / timedelta(minutes=1)
    return Missing(
        n_requests=max(0, spec.min_requests - candidate.n_judged),
        minutes=max(0.0, spec.min_minutes - waited),
    )


def _excess(verdict: Judged) -> float:
    """Return by how much it is worse than allowed; rates before times, which are relative."""
    over = (verdict.low or 0.0) - verdict.guardrail.tolerance
    return over + (1000 if verdict.guardrail.metric in RATES else 0)
