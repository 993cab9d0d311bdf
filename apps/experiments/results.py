"""What came of an experiment, as every door tells it: the page, REST, CSV and the command read this
and nothing else, so that they say the same numbers. Made by ``summary.experiment_results``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Role = Literal["primary", "secondary", "guardrail"]
# Of an arm against the control, in one metric. nothing: too little to say anything; same: no
# difference as large as the least effect that is worth finding.
Word = Literal["better", "worse", "same", "unclear", "nothing"]
Tone = Literal["good", "busy", "warn", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmLine:
    """One arm. n_subjects, n_requests: counted, without those seen in several arms, which are
    n_crossed of the arm in which they were first. share: of the subjects of all arms, 0 to 1;
    expected: what the weights say."""

    id: int
    name: str
    is_control: bool
    weight: int
    n_subjects: int
    n_requests: int
    n_crossed: int
    share: float
    expected: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An arm against the control in one metric. value, control: in the metric's unit. effect:
    relative, 0.05 is five percent more; low and high hold it at every look, and may be infinite;
    None where nothing can be said yet. p_value: of no difference, valid at every look, adjusted for
    all arms and metrics of its family. is_reduced: what subjects did before is taken out."""

    arm: str
    metric: str
    value: float | None
    control: float | None
    effect: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    n_subjects: int
    is_reduced: bool
    word: Word
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLine:
    """A metric of the experiment. tolerance: of a guardrail. alpha: the level of each of its
    intervals. values: of each arm by its name, the control too, in ``unit``; None without
    anything. totals: of each arm numerator and denominator, as they were counted. effects: of each
    arm but the control."""

    key: str
    label: str
    unit: str
    kind: str
    says: str
    role: Role
    better: str
    tolerance: float
    alpha: float
    values: Mapping[str, float | None]
    totals: Mapping[str, tuple[int, int]]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLine:
    """A model that scores answers of the experiment, by a rubric. key: of its metric. n_counted: of
    its scores, how many are in the totals here; n_scored, n_failed, n_waiting: of all answers that
    it took, wherever. is_gone: it was deleted since, and its rubric with it. warning: what is
    partial about it."""

    key: str
    name: str
    rubric: str = ""
    lowest: int = 0
    highest: int = 0
    route: str = ""
    is_on: bool = False
    is_gone: bool = False
    n_counted: int
    n_scored: int = 0
    n_failed: int = 0
    n_waiting: int = 0
    last_problem: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Whether subjects fall to the arms as the weights say (sample ratio mismatch). counts: since
    the weights were last set, by arm. p_value: valid at every look."""

    counts: Mapping[str, int]
    p_value: float
    is_alarm: bool
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentLine:
    """The primary metric of one part of the subjects. segment: as totals name it. Its intervals
    hold one by one, not all together: they are to be looked into, not to decide by."""

    segment: str
    label: str
    n_subjects: int
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEffect:
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """One look. n_subjects, n_requests: by arm. effects: by metric and role, then by arm, as
    ``MetricLine.key`` and ``role`` joined by a slash; ``mismatch``: the p-value."""

    at: datetime
    n_subjects: Mapping[str, int]
    n_requests: Mapping[str, int]
    effects: Mapping[str, Mapping[str, SeriesEffect]]
    mismatch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How far it is. n_planned: subjects in all for the least effect at the wanted power, by what
    the control has shown so far; None before it has. detectable: the least effect that these
    subjects would find, relative. n_more, days: until n_planned at the present rate of per_day new
    subjects; None where that is not known, 0 where it is reached."""

    n_subjects: int
    n_planned: int | None
    min_effect: float
    power: float
    detectable: float | None
    n_more: int | None
    per_day: float | None
    days: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """headline: what is known, in one sentence or two. what_next: what would change it. best: the
    arm that is better by the primary metric, where one is; its guardrails are kept then."""

    tone: Tone
    headline: str
    what_next: tuple[str, ...]
    may_stop: bool
    best: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResults:
    """at: when these numbers were read. looked_at: when the last look was."""

    id: int
    name: str
    version: int
    hypothesis: str
    route: str
    subject: str
    state: str
    started_at: datetime | None
    stopped_at: datetime | None
    stopped_because: str
    winner: str | None
    at: datetime
    looked_at: datetime | None
    alpha: float
    arms: tuple[ArmLine, ...]
    metrics: tuple[MetricLine, ...]
    judges: tuple[JudgeLine, ...] = ()
    mismatch: Mismatch
    power: Power
    verdict: Verdict
    segments: tuple[SegmentLine, ...] = ()
    series: tuple[SeriesPoint, ...] = ()

    @property
    def n_subjects(self) -> int:
        return sum(arm.n_subjects for arm in self.arms)

    @property
    def n_requests(self) -> int:
        return sum(arm.n_requests for arm in self.arms)

    @property
    def primary(self) -> MetricLine | None:
        return next((line for line in self.metrics if line.role == "primary"), None)
