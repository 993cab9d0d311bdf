"""What moves a rollout. Each is one transaction: the row is locked, the version that the caller saw
is compared, and then the state, the route's weights, the audit event and the stamps change
together or not at all. Of two who click at once one is told that it was changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import row_lock
from apps.rollouts.approving import UNKNOWN, approval_refused, is_known
from apps.rollouts.checking import Asked, Findings, findings, ready_ids
from apps.rollouts.exceptions import RolloutConflict, SecondPersonNeeded
from apps.rollouts.models import Rollout
from apps.rollouts.moving import Move, move, saved, seen_check, step_begin
from apps.rollouts.rows import guardrails_stored, holder_of, plan_of, steps_stored
from apps.rollouts.transitions import begun
from apps.rollouts.types import DEFAULT_STEPS, Approval, GuardrailSpec, StepSpec
from apps.routing.services import route_hold

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.rbac.models import User
    from apps.routing.models import Route


@transaction.atomic
def rollout_start(
    *,
    route: Route,
    candidate: Deployment,
    actor: Actor,
    by: User | None,
    baseline: Deployment | None = None,
    steps: Sequence[StepSpec] = DEFAULT_STEPS,
    guardrails: Sequence[GuardrailSpec] | None = None,
    approval: Approval = "automatic",
    needs_second_person: bool = False,
    alpha: float = 0.05,
) -> Rollout:
    """Begin to move a route's traffic to another deployment; where two persons are wanted it waits
    for the second, and no request goes to the new one yet. by: the person, also behind a token.
    Others are as ``rollouts.checking.Asked`` has them.

    Raises:
        RolloutConflict: the route has an open rollout.
        ValidationError: names the field, as ``rollouts.types.Checked`` does.
    """
    route = row_lock(route)
    _open_refuse(route)
    asked = Asked(
        route=route,
        candidate=candidate,
        baseline=baseline,
        steps=steps,
        guardrails=guardrails,
        approval=approval,
        needs_second_person=needs_second_person,
        alpha=alpha,
    )
    found = findings(asked)
    if found.checked.problems:
        raise ValidationError(dict(found.checked.problems))
    if found.checked.needs_second_person and not is_known(by, actor=actor):
        text = f"Two persons are needed, so it has to be known who starts it; {UNKNOWN}."
        raise ValidationError({"by": text})
    rollout = _rollout_make(asked, found, actor=actor, by=by)
    route_hold(route=route, holder=holder_of(rollout))
    if rollout.state == Rollout.State.RUNNING:
        step_begin(rollout, actor=actor)
    saved(rollout)
    event_record(action="rollout.started", actor=actor, obj=rollout, changes=_start_facts(rollout))
    return rollout


@transaction.atomic
def rollout_approve(
    *, rollout: Rollout, seen: int, actor: Actor, by: User | None, reason: str = ""
) -> Rollout:
    """Let it begin, or go on to its next step. seen: the version that they saw.

    Raises:
        RolloutConflict: it was changed meanwhile, or waits for no approval.
        SecondPersonNeeded: by whoever started it, or by nobody in particular.
    """
    current = _locked(rollout, seen)
    if (refused := approval_refused(current, by=by, actor=actor)) is not None:
        raise SecondPersonNeeded(refused)
    if current.state == Rollout.State.PENDING and current.candidate_id not in ready_ids():
        raise RolloutConflict(f"{current.candidate_name} has no ready replica now.")
    return move(current, Move(event="approved", actor=actor, reason=reason, facts=_by(by)))


@transaction.atomic
def rollout_pause(
    *, rollout: Rollout, seen: int, actor: Actor, by: User | None, reason: str = ""
) -> Rollout:
    """Let the traffic stay as it is; guardrails still guard. Raises RolloutConflict."""
    current = _locked(rollout, seen)
    return move(current, Move(event="paused", actor=actor, reason=reason, facts=_by(by)))


@transaction.atomic
def rollout_resume(
    *, rollout: Rollout, seen: int, actor: Actor, by: User | None, reason: str = ""
) -> Rollout:
    """Let it go on from where it was paused. Raises RolloutConflict."""
    current = _locked(rollout, seen)
    return move(current, Move(event="resumed", actor=actor, reason=reason, facts=_by(by)))


@transaction.atomic
def rollout_abort(
    *, rollout: Rollout, seen: int, actor: Actor, by: User | None, reason: str = ""
) -> Rollout:
    """End it, and lead the route to where it led before. Raises RolloutConflict."""
    current = _locked(rollout, seen)
    return move(current, Move(event="aborted", actor=actor, reason=reason, facts=_by(by)))


def _locked(rollout: Rollout, seen: int) -> Rollout:
    current = row_lock(rollout)
    seen_check(current, seen)
    return current


def _open_refuse(route: Route) -> None:
    is_open = Rollout.objects.filter(route=route, state__in=Rollout.OPEN).first()
    if is_open is not None:
        raise RolloutConflict(
            f"Rollout {is_open.pk} of {route}, to {is_open.candidate_name}, has not ended."
        )


def _rollout_make(asked: Asked, found: Findings, *, actor: Actor, by: User | None) -> Rollout:
    assert found.baseline is not None
    rollout = Rollout(
        route=asked.route,
        route_name=asked.route.name,
        baseline=found.baseline,
        baseline_name=found.baseline.name,
        candidate=asked.candidate,
        candidate_name=asked.candidate.name,
        steps=steps_stored(asked.steps),
        guardrails=guardrails_stored(found.guardrails),
        approval=asked.approval,
        needs_second_person=found.checked.needs_second_person,
        alpha=asked.alpha,
        targets_before=[
            [each.deployment.pk, each.weight, each.fallback_order] for each in found.before
        ],
        started_by=by,
        started_by_name=(by.get_username() if by is not None else actor.label)[:200],
        version=0,
    )
    rollout.state = begun(plan_of(rollout)).state
    rollout.approved_step = -1 if found.checked.needs_second_person else 0
    rollout.save()
    return rollout


def _start_facts(rollout: Rollout) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "route": rollout.route_name,
        "from": rollout.baseline_name,
        "to": rollout.candidate_name,
        "steps": rollout.steps,
        "guardrails": rollout.guardrails,
        "approval": rollout.approval,
        "needs_second_person": rollout.needs_second_person,
        "alpha": rollout.alpha,
        "by": rollout.started_by_name,
    }


def _by(by: User | None) -> dict[str, Any]:
    return {} if by is None else {"by": by.get_username()}
