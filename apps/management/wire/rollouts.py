"""Rollouts on the wire."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from apps.management.wire.common import ManagedPage, Name, PageQuery, seconds, seconds_or_none
from apps.management.wire.routes import RouteName
from apps.rollouts.types import (
    DEFAULT_STEPS,
    GuardrailSpec,
    Metric,
    RolloutReport,
    StepSpec,
)

if TYPE_CHECKING:
    from apps.rollouts.models import Rollout

StateName = Literal[
    "pending", "running", "awaiting", "paused", "completed", "rolled_back", "aborted"
]
ApprovalName = Literal["automatic", "last", "each"]
Percent = Annotated[float, Meta(gt=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Minutes = Annotated[float, Meta(ge=0, le=43_200)]
Tolerance = Annotated[float, Meta(ge=0, le=10)]
Alpha = Annotated[float, Meta(gt=0, lt=1)]
Reason = Annotated[str, Meta(max_length=300)]


class StepBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``percent`` of what both get together goes to the new one, until that has answered so many
    requests, and so many minutes have passed."""

    percent: Percent
    min_requests: Count = 100
    min_minutes: Minutes = 5.0


class GuardrailBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How much worse than the old one the new one may be: of a time, the part of it (0.1 is a
    tenth longer); of a rate, the part of all requests (0.01 is one of a hundred more)."""

    metric: Metric
    tolerance: Tolerance


Steps = Annotated[tuple[StepBody, ...], Meta(min_length=1, max_length=20)]
Guardrails = Annotated[tuple[GuardrailBody, ...], Meta(max_length=10)]


class RolloutBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``candidate``: the deployment that the requests go to in the end; ``baseline``: the one whose
    place it takes, where the route leads to several. ``guardrails``: null for the usual ones.
    ``alpha``: of rollouts of an equal version, the part that goes back at most."""

    route: RouteName
    candidate: Name
    baseline: Name | None = None
    steps: Steps = msgspec.field(
        default_factory=lambda: tuple(
            StepBody(
                percent=each.percent,
                min_requests=each.min_requests,
                min_minutes=each.min_minutes,
            )
            for each in DEFAULT_STEPS
        )
    )
    guardrails: Guardrails | None = None
    approval: ApprovalName = "automatic"
    needs_second_person: bool = False
    alpha: Alpha = 0.05


class AbortBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``reason``: for the audit trail."""

    reason: Reason = ""


class RolloutQuery(PageQuery, kw_only=True, forbid_unknown_fields=True):
    """``route``: of that route alone; ``state``: in that state alone."""

    route: Name | None = None
    state: StateName | None = None


class StepObject(msgspec.Struct, kw_only=True):
    percent: float
    min_requests: int
    min_minutes: float


class GuardrailObject(msgspec.Struct, kw_only=True):
    metric: Metric
    tolerance: float


class RolloutObject(msgspec.Struct, kw_only=True):
    """``step``: the index of the present one. ``version`` moves with every change, and is the
    ETag."""

    id: str
    object: str = "rollout"
    version: int
    created_at: int
    route: str
    baseline: str
    candidate: str
    state: StateName
    reason: str
    step: int
    steps: tuple[StepObject, ...]
    guardrails: tuple[GuardrailObject, ...]
    approval: ApprovalName
    needs_second_person: bool
    alpha: float
    started_by: str
    ended_at: int | None


class SeenGuardrail(msgspec.Struct, kw_only=True):
    """``low`` and ``high``: how much worse the new one is, between these; null while nothing can be
    said. ``baseline`` and ``candidate``: what was measured, in words."""

    metric: Metric
    tolerance: float
    baseline: str | None
    candidate: str | None
    low: float | None
    high: float | None
    is_breached: bool
    verdict: str


class SeenStep(msgspec.Struct, kw_only=True):
    """Requests that each side had in a step; ``n_failed``: of the new one's."""

    percent: float
    started_at: int | None
    n_baseline: int
    n_candidate: int
    n_failed: int
    guardrails: tuple[SeenGuardrail, ...]


class RolloutDetail(RolloutObject, kw_only=True):
    """``percent``: that the new one gets now. ``next``: what comes, in words. ``may_approve``:
    whether there is something to approve, which whoever asks is not kept from because they started
    it; ``refused``: why not, in words."""

    percent: float
    next: str
    may_approve: bool
    refused: str
    seen: tuple[SeenStep, ...]


class RolloutPage(ManagedPage, kw_only=True):
    data: tuple[RolloutObject, ...]


def step_specs(body: RolloutBody) -> tuple[StepSpec, ...]:
    return tuple(
        StepSpec(percent=each.percent, min_requests=each.min_requests, min_minutes=each.min_minutes)
        for each in body.steps
    )


def guardrail_specs(body: RolloutBody) -> tuple[GuardrailSpec, ...] | None:
    if body.guardrails is None:
        return None
    return tuple(
        GuardrailSpec(metric=each.metric, tolerance=each.tolerance) for each in body.guardrails
    )


def _facts(row: "Rollout") -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "version": row.version,
        "created_at": seconds(row.created_at),
        "route": row.route_name,
        "baseline": row.baseline_name,
        "candidate": row.candidate_name,
        "state": row.state,
        "reason": row.reason,
        "step": row.step,
        "steps": tuple(StepObject(**each) for each in row.steps),
        "guardrails": tuple(GuardrailObject(**each) for each in row.guardrails),
        "approval": row.approval,
        "needs_second_person": row.needs_second_person,
        "alpha": row.alpha,
        "started_by": row.started_by_name,
        "ended_at": seconds_or_none(row.ended_at),
    }


def rollout_object(row: "Rollout") -> RolloutObject:
    return RolloutObject(**_facts(row))


def rollout_detail(row: "Rollout", report: RolloutReport) -> RolloutDetail:
    return RolloutDetail(
        **_facts(row),
        percent=report.percent,
        next=report.next_said,
        may_approve=report.may_approve,
        refused=report.refused_said,
        seen=tuple(
            SeenStep(
                percent=step.spec.percent,
                started_at=seconds_or_none(step.started_at),
                n_baseline=step.n_baseline,
                n_candidate=step.n_candidate,
                n_failed=step.n_failed,
                guardrails=tuple(
                    SeenGuardrail(
                        metric=each.metric,
                        tolerance=each.tolerance,
                        baseline=each.baseline,
                        candidate=each.candidate,
                        low=each.low,
                        high=each.high,
                        is_breached=each.is_breached,
                        verdict=each.verdict,
                    )
                    for each in step.guardrails
                ),
            )
            for step in report.steps
        ),
    )
