"""What the room hands to others: how a rollout is to go, and how it goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import copysign
from typing import Final, Literal

Metric = Literal["error_rate", "ttft", "itl", "empty_rate", "thumbs_down_rate"]
State = Literal["pending", "running", "awaiting", "paused", "completed", "rolled_back", "aborted"]
Approval = Literal["automatic", "last", "each"]
Tone = Literal["good", "busy", "warn", "bad"]

ROLLOUTS_STAMP: Final = "rollouts"
# Of the drawing of an interval: how wide all is, and what can be seen.
WHOLE: Final = 100.0
LEAST_WIDTH: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """percent: of what baseline and candidate get together, that the candidate gets. It lasts until
    the candidate has answered so many requests, and so many minutes."""

    percent: float
    min_requests: int = 100
    min_minutes: float = 5.0

    @property
    def minutes_said(self) -> str:
        return f"{self.min_minutes:g} min at least" if self.min_minutes else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailSpec:
    """tolerance: how much worse than the old version the new one may be: relative (0.1 is a tenth)
    for times, in percentage points (0.01 is one) for rates."""

    metric: Metric
    tolerance: float


DEFAULT_STEPS: Final = (
    StepSpec(percent=1.0),
    StepSpec(percent=10.0),
    StepSpec(percent=50.0),
    StepSpec(percent=100.0, min_requests=0, min_minutes=0.0),
)
DEFAULT_GUARDRAILS: Final = (
    GuardrailSpec(metric="error_rate", tolerance=0.01),
    GuardrailSpec(metric="ttft", tolerance=0.25),
    GuardrailSpec(metric="itl", tolerance=0.25),
    GuardrailSpec(metric="empty_rate", tolerance=0.02),
    GuardrailSpec(metric="thumbs_down_rate", tolerance=0.1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailLine:
    """A guardrail of one step as people read it. baseline, candidate: the values, in words with
    their unit; None before there is anything. low, high: the always-valid interval of how much
    worse the candidate is, as ``tolerance`` counts it. verdict: in words."""

    metric: Metric
    label: str
    tolerance: float
    baseline: str | None
    candidate: str | None
    low: float | None
    high: float | None
    is_breached: bool
    verdict: str
    tone: Tone

    @property
    def tolerance_said(self) -> str:
        much = f"{100 * self.tolerance:g}"
        if not self.metric.endswith("_rate"):
            return f"{much} %"
        return f"{much} point" if much == "1" else f"{much} points"

    @property
    def interval_x(self) -> str:
        """Where the interval begins, drawn on 0 to 100: no difference is in the middle, what is
        tolerated at two thirds, and what is far off near the edges."""
        return f"{self._place(self.low):.1f}"

    @property
    def interval_width(self) -> str:
        """At least as wide as can be seen; nothing where nothing can be said yet."""
        if self.low is None and self.high is None:
            return "0"
        end = WHOLE if self.high is None else self._place(self.high)
        return f"{max(end - self._place(self.low), LEAST_WIDTH):.1f}"

    def _place(self, value: float | None) -> float:
        """Return the place of a difference: of r tolerances r / (|r| + 2) of the half, which is a
        third of it for one of them, and all of it for no bound."""
        if value is None:
            return 0.0
        times = value / (self.tolerance or 0.001)
        place = WHOLE / 2 * (1 + copysign(1 - 2 / (abs(times) + 2), times))
        return min(max(place, 0.0), WHOLE - LEAST_WIDTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """index: from 0. n_baseline, n_candidate: requests counted; n_failed: the candidate's."""

    index: int
    spec: StepSpec
    is_present: bool
    is_past: bool
    started_at: datetime | None
    n_baseline: int
    n_candidate: int
    n_failed: int
    guardrails: tuple[GuardrailLine, ...]

    @property
    def tone(self) -> Tone | None:
        if any(each.is_breached for each in self.guardrails):
            return "bad"
        if self.is_past:
            return "good"
        return "busy" if self.is_present else None

    @property
    def width(self) -> str:
        """How many of its requests it has had, on 0 to 100."""
        if self.is_past or not self.spec.min_requests:
            return f"{WHOLE if self.is_past else 0:.0f}"
        return f"{min(100 * self.n_candidate / self.spec.min_requests, 100):.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """A rollout as every door tells it. next_said: what will happen next and when, in words.
    percent: of what both get, that the new one gets now. may_approve: whether there is something to
    approve and this person is not kept from it by who started it; refused_said: why not, if not.
    """

    id: int
    version: int
    route_name: str
    baseline_name: str
    candidate_name: str
    state: State
    state_label: str
    tone: Tone
    reason: str
    next_said: str
    route_id: int | None
    baseline_id: int | None
    candidate_id: int | None
    percent: float
    step: int
    steps: tuple[StepLine, ...]
    started_by: str
    started_at: datetime
    ended_at: datetime | None
    needs_second_person: bool
    approval: str
    may_approve: bool
    refused_said: str

    @property
    def key(self) -> str:
        """By which pages mark its words."""
        return f"o{self.id}"

    @property
    def shape(self) -> str:
        """What changes when a page has to be made anew."""
        began = sum(each.started_at is not None for each in self.steps)
        return f"{self.version}.{self.state}.{self.step}.{began}"

    @property
    def percent_said(self) -> str:
        return f"{self.percent:.3g} %"

    @property
    def judged(self) -> StepLine | None:
        """The last step that began: whose guardrails tell how it stands."""
        began = [each for each in self.steps if each.started_at is not None]
        return began[-1] if began else None

    @property
    def promotion_said(self) -> str:
        return {
            "automatic": "Each next step comes by itself.",
            "last": "The last step waits for approval.",
            "each": "Each step waits for approval.",
        }[self.approval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is to be said before a rollout starts. problems: field → texts, any of which forbids it;
    warnings: what somebody should know. percents: what each step really gives, as weights are whole
    numbers; empty where it cannot start. needs_second_person: also where only a tenant asks it."""

    problems: Mapping[str, list[str]]
    warnings: tuple[str, ...]
    baseline_name: str
    percents: tuple[float, ...]
    needs_second_person: bool
