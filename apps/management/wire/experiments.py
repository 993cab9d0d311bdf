"""Experiments on the wire: what is compared, and what came of it."""

from dataclasses import fields, is_dataclass
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from apps.management.wire.common import (
    END,
    ManagedPage,
    Name,
    seconds,
    seconds_or_none,
)
from apps.management.wire.routes import Defaults, RouteName

if TYPE_CHECKING:
    from apps.experiments.models import Experiment, Variant

ExperimentName = Annotated[str, Meta(min_length=1, max_length=60, pattern=rf"^[A-Za-z0-9_-]+{END}")]
VariantName = Annotated[str, Meta(min_length=1, max_length=40, pattern=rf"^[A-Za-z0-9_-]+{END}")]
MetricName = Annotated[str, Meta(min_length=1, max_length=80)]
VariantWeight = Annotated[int, Meta(ge=1, le=1000)]
Template = Annotated[str, Meta(max_length=20_000)]
Because = Annotated[str, Meta(min_length=1, max_length=500)]
Condition = Annotated[list[str | int], Meta(max_length=100)]
SubjectKind = Literal["end_user", "token", "conversation"]
Role = Literal["primary", "secondary", "guardrail"]
Better = Literal["higher", "lower"]


class VariantBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One arm: its share of the subjects is its weight among the weights of all. What it leaves
    empty is as the route has it."""

    name: VariantName
    weight: VariantWeight = 50
    is_control: bool = False
    deployment: Name | None = None
    other_route: RouteName | None = None
    parameters: Defaults = msgspec.field(default_factory=dict)
    prompt_template: Template = ""


class MetricBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``better``: left out, as the metric usually is. ``tolerance``: of a guardrail, the relative
    worsening that stops an arm."""

    metric: MetricName
    role: Role = "secondary"
    better: Better | None = None
    tolerance: Annotated[float, Meta(ge=0, le=10)] = 0.1


class ExperimentBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A draft. ``min_effect``: relative, 0.05 is five percent. ``layer``: by name; left out, the
    one called default. ``eligibility``: ``tenants``, ``doors``, ``end_user_prefixes``,
    ``api_tokens``; who takes part is among all that are given."""

    name: ExperimentName
    route: RouteName
    variants: Annotated[tuple[VariantBody, ...], Meta(max_length=10)]
    metrics: Annotated[tuple[MetricBody, ...], Meta(max_length=20)]
    hypothesis: Annotated[str, Meta(max_length=500)] = ""
    layer: Name | None = None
    share_percent: Annotated[float, Meta(ge=0.01, le=100)] = 100.0
    subject: SubjectKind = "end_user"
    eligibility: Annotated[dict[str, Condition], Meta(max_length=4)] = msgspec.field(
        default_factory=dict
    )
    alpha: Annotated[float, Meta(ge=0.001, le=0.2)] = 0.05
    power: Annotated[float, Meta(ge=0.5, le=0.99)] = 0.8
    min_effect: Annotated[float, Meta(ge=0.001, le=10)] = 0.05
    planned_units: Annotated[int, Meta(ge=2, le=2**31 - 1)] = 2000
    pre_period_days: Annotated[int, Meta(ge=0, le=30)] = 0


class StopBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``because``: in words, for those who read it later. ``winner``: a variant, if one has won."""

    because: Because
    winner: VariantName | None = None


class WeightsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """By the names of variants; those left out keep theirs."""

    weights: Annotated[dict[VariantName, VariantWeight], Meta(min_length=1, max_length=10)]


class PromoteBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``variant``: the winner."""

    variant: VariantName
    because: Annotated[str, Meta(max_length=500)] = ""


class VariantObject(msgspec.Struct, kw_only=True):
    name: str
    weight: int
    is_control: bool
    deployment: str | None
    other_route: str | None
    parameters: dict[str, int | float]
    prompt_template: str


class MetricObject(msgspec.Struct, kw_only=True):
    metric: str
    role: Role
    better: Better
    tolerance: float


class ExperimentObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "experiment"
    created_at: int
    updated_at: int
    version: int
    state: str
    hypothesis: str
    route: str
    layer: str
    share_percent: float
    subject: SubjectKind
    eligibility: dict[str, list[str | int]]
    alpha: float
    power: float
    min_effect: float
    planned_units: int
    pre_period_days: int
    variants: tuple[VariantObject, ...]
    metrics: tuple[MetricObject, ...]
    started_at: int | None
    stopped_at: int | None
    stopped_because: str
    winner: str | None


class ExperimentPage(ManagedPage, kw_only=True):
    data: tuple[ExperimentObject, ...]


class PromotedObject(msgspec.Struct, kw_only=True):
    """``rollout``: the id of the rollout that began; null where the winner has no version of its
    own."""

    object: str = "experiment.promotion"
    experiment: ExperimentObject
    rollout: int | None


# -- results -----------------------------------------------------------------------------------


class ArmResult(msgspec.Struct, kw_only=True):
    name: str
    is_control: bool
    weight: int
    n_subjects: int
    n_requests: int
    n_crossed: int
    share: float
    expected: float


class EffectResult(msgspec.Struct, kw_only=True):
    """An arm against the control. ``effect``, ``low``, ``high`` are relative; null is unknown or
    without bound."""

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
    word: Literal["better", "worse", "same", "unclear", "nothing"]
    said: str


class MetricResult(msgspec.Struct, kw_only=True):
    """``totals``: of each arm numerator and denominator, exact: microseconds, millionths, or logs
    in millionths."""

    key: str
    label: str
    unit: str
    kind: str
    says: str
    role: Role
    better: Better
    tolerance: float
    alpha: float
    values: dict[str, float | None]
    totals: dict[str, tuple[int, int]]
    effects: tuple[EffectResult, ...]


class JudgeResult(msgspec.Struct, kw_only=True):
    """A model that scores answers. ``n_counted``: of its scores, those in the totals here;
    ``n_scored``, ``n_failed``, ``n_waiting``: of all answers that it took. ``is_gone``: it was
    deleted since. ``warning``: what is partial about it."""

    key: str
    name: str
    rubric: str
    lowest: int
    highest: int
    route: str
    is_on: bool
    is_gone: bool
    n_counted: int
    n_scored: int
    n_failed: int
    n_waiting: int
    last_problem: str
    warning: str


class MismatchResult(msgspec.Struct, kw_only=True):
    counts: dict[str, int]
    p_value: float
    is_alarm: bool
    said: str


class PowerResult(msgspec.Struct, kw_only=True):
    n_subjects: int
    n_planned: int | None
    min_effect: float
    power: float
    detectable: float | None
    n_more: int | None
    per_day: float | None
    days: float | None


class VerdictResult(msgspec.Struct, kw_only=True):
    tone: str
    headline: str
    what_next: tuple[str, ...]
    may_stop: bool
    best: str | None


class SegmentResult(msgspec.Struct, kw_only=True):
    segment: str
    label: str
    n_subjects: int
    effects: tuple[EffectResult, ...]


class SeriesEffectResult(msgspec.Struct, kw_only=True):
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None


class SeriesResult(msgspec.Struct, kw_only=True):
    at: int
    n_subjects: dict[str, int]
    n_requests: dict[str, int]
    effects: dict[str, dict[str, SeriesEffectResult]]
    mismatch: float


class ResultsObject(msgspec.Struct, kw_only=True):
    """What the page of results shows. ``at``: when the numbers were read."""

    id: str
    object: str = "experiment.results"
    version: int
    route: str
    state: str
    at: int
    looked_at: int | None
    alpha: float
    n_subjects: int
    n_requests: int
    verdict: VerdictResult
    arms: tuple[ArmResult, ...]
    metrics: tuple[MetricResult, ...]
    judges: tuple[JudgeResult, ...]
    mismatch: MismatchResult
    power: PowerResult
    segments: tuple[SegmentResult, ...]
    series: tuple[SeriesResult, ...]


def results_object(results: Any) -> ResultsObject:
    """results: of ``experiments.selectors``."""
    said = _plain(results)
    said |= {"id": results.name, "n_subjects": results.n_subjects, "n_requests": results.n_requests}
    found: ResultsObject = msgspec.convert(said, ResultsObject)
    return found


def _plain(value: Any) -> Any:
    """Return builtins: times in seconds, no number without bound."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return seconds(value)
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


# -- what there is -----------------------------------------------------------------------------


def experiment_object(row: "Experiment") -> ExperimentObject:
    """row: as ``experiments_described`` has it; no query."""
    return ExperimentObject(
        id=row.name,
        created_at=seconds(row.created_at),
        updated_at=seconds(row.updated_at),
        version=row.version,
        state=row.state,
        hypothesis=row.hypothesis,
        route=row.route.name,
        layer=row.layer.name,
        share_percent=row.share_percent,
        subject=row.subject,  # type: ignore[arg-type]  # one of its choices
        eligibility=row.eligibility,
        alpha=row.alpha,
        power=row.power,
        min_effect=row.min_effect,
        planned_units=row.planned_units,
        pre_period_days=row.pre_period_days,
        variants=tuple(_variant_object(each) for each in row.variants.all()),
        metrics=tuple(
            MetricObject(
                metric=each.metric,
                role=each.role,  # type: ignore[arg-type]  # one of its choices
                better=each.better,  # type: ignore[arg-type]  # one of its choices
                tolerance=each.tolerance,
            )
            for each in row.metrics.all()
        ),
        started_at=seconds_or_none(row.started_at),
        stopped_at=seconds_or_none(row.stopped_at),
        stopped_because=row.stopped_because,
        winner=None if row.winner is None else row.winner.name,
    )


def _variant_object(row: "Variant") -> VariantObject:
    return VariantObject(
        name=row.name,
        weight=row.weight,
        is_control=row.is_control,
        deployment=None if row.deployment is None else row.deployment.name,
        other_route=None if row.other_route is None else row.other_route.name,
        parameters=row.parameters,
        prompt_template=row.prompt_template,
    )
