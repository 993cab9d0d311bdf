"""The one way in which a rollout changes: its row, where its route leads, the audit event and the
stamps, in the caller's transaction. The row is locked by then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump
from apps.rollouts.checking import split_at
from apps.rollouts.counting import arm
from apps.rollouts.exceptions import RolloutConflict
from apps.rollouts.models import Rollout
from apps.rollouts.rows import holder_of, plan_of, position_of, tallies_begin
from apps.rollouts.transitions import TERMINAL, Event, Position, moved
from apps.rollouts.types import ROLLOUTS_STAMP
from apps.routing.selectors import targets_of
from apps.routing.services import route_release, route_update
from apps.routing.types import TargetSpec

if TYPE_CHECKING:
    from apps.deployments.models import Deployment

CONTROLLER: Final = Actor(kind="system", label="rollout controller")
_MAX_REASON: Final = 500
_ACTIONS: Final[dict[Event, str]] = {
    "approved": "rollout.approved",
    "guardrail_breached": "rollout.rolled_back",
    "candidate_lost": "rollout.rolled_back",
    "paused": "rollout.paused",
    "resumed": "rollout.resumed",
    "aborted": "rollout.aborted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What moves a rollout. reason: in words, for people; facts: figures for the audit trail."""

    event: Event
    actor: Actor
    reason: str = ""
    facts: Mapping[str, Any] | None = None


def seen_check(rollout: Rollout, seen: int) -> None:
    """Raise RolloutConflict where somebody acts on what they saw before it was changed."""
    if rollout.version != seen:
        state = rollout.get_state_display()
        because = f" ({rollout.reason})" if rollout.reason else ""
        raise RolloutConflict(
            f"The rollout was changed meanwhile; it is now: {state}{because}. Look again."
        )


def move(rollout: Rollout, change: Move) -> Rollout:
    """Move a locked rollout, its route and the trail.

    Raises:
        RolloutConflict: its state does not allow it.
        ValidationError: where the route is to lead, it cannot.
    """
    before = position_of(rollout)
    after = moved(before, change.event, plan_of(rollout))
    _position_set(rollout, after, reason=change.reason)
    if after.state in TERMINAL:
        route_end(rollout, actor=change.actor)
    elif after.has_traffic and (not before.has_traffic or after.step != before.step):
        step_begin(rollout, actor=change.actor)
    saved(rollout)
    event_record(
        action=_action(change.event, after),
        actor=change.actor,
        obj=rollout,
        changes=_facts(before, after, rollout, change),
    )
    return rollout


def saved(rollout: Rollout) -> None:
    """Write a rollout that was changed, for everybody to see."""
    rollout.version += 1
    rollout.save()
    change_stamp_bump(ROLLOUTS_STAMP)


def step_begin(rollout: Rollout, *, actor: Actor) -> None:
    """Let its route lead as the present step wants, and count from here on."""
    rollout.step_started_at = timezone.now()
    rollout.lost_at = None
    tallies_begin(rollout)
    if rollout.route is None or rollout.baseline is None or rollout.candidate is None:
        raise RolloutConflict("Its route or one of its deployments is gone; abort it.")
    percent = rollout.steps[rollout.step]["percent"]
    route_update(
        route=rollout.route,
        actor=actor,
        holder=holder_of(rollout),
        targets=_targets(rollout, percent, has_arms=True),
    )


def route_end(rollout: Rollout, *, actor: Actor) -> None:
    """Let its route lead for good where the rollout has ended it: all to the new version, with the
    old one still named, or to where it led before. Nothing holds it any more."""
    if rollout.route is None:
        return
    if rollout.state == Rollout.State.COMPLETED:
        targets = _targets(rollout, 100.0, has_arms=False)
    else:
        targets = _before(rollout)
    route_update(route=rollout.route, actor=actor, holder=holder_of(rollout), targets=targets)
    route_release(route=rollout.route, holder=holder_of(rollout))


def _position_set(rollout: Rollout, after: Position, *, reason: str) -> None:
    if after.state == "running":
        rollout.approved_step = max(rollout.approved_step, after.step)
    rollout.state, rollout.step = after.state, after.step
    rollout.paused_from = after.paused_from or ""
    rollout.reason = reason[:_MAX_REASON]
    if after.state in TERMINAL:
        rollout.ended_at = timezone.now()


def _before(rollout: Rollout) -> list[TargetSpec]:
    """Return where its route led before it began. None of those can be gone: a route's deployments
    are protected, and nobody else could change the route."""
    found = _deployments(rollout)
    return [
        TargetSpec(deployment=found[key], weight=weight, fallback_order=order)
        for key, weight, order in rollout.targets_before
    ]


def _targets(rollout: Rollout, percent: float, *, has_arms: bool) -> list[TargetSpec]:
    baseline, candidate = rollout.baseline, rollout.candidate
    assert baseline is not None and candidate is not None
    before = [each for each in _before(rollout) if each.deployment.pk != candidate.pk]
    shares = split_at(percent, baseline=baseline, before=before)
    arms = {
        side: arm(rollout.pk, rollout.step, side) if has_arms else ""
        for side in ("baseline", "candidate")
    }
    others = [
        TargetSpec(
            deployment=each.deployment,
            weight=shares.others[each.deployment.pk],
            fallback_order=each.fallback_order,
        )
        for each in before
        if each.deployment.pk != baseline.pk
    ]
    return [
        TargetSpec(deployment=baseline, weight=shares.baseline, arm=arms["baseline"]),
        TargetSpec(deployment=candidate, weight=shares.candidate, arm=arms["candidate"]),
        *others,
    ]


def _deployments(rollout: Rollout) -> dict[int, "Deployment"]:
    assert rollout.route is not None
    found = {each.deployment.pk: each.deployment for each in targets_of(rollout.route)}
    for each in (rollout.baseline, rollout.candidate):
        if each is not None:
            found[each.pk] = each
    return found


def _action(event: Event, after: Position) -> str:
    if event != "step_passed":
        return _ACTIONS[event]
    words = {"completed": "rollout.completed", "awaiting": "rollout.step_passed"}
    return words.get(after.state, "rollout.advanced")


def _facts(before: Position, after: Position, rollout: Rollout, change: Move) -> dict[str, Any]:
    facts: dict[str, Any] = {"state": [before.state, after.state]}
    percents = [share_of(rollout, before), share_of(rollout, after)]
    if percents[0] != percents[1]:
        facts["percent"] = percents
    if change.reason:
        facts["reason"] = change.reason[:_MAX_REASON]
    return {**facts, **(change.facts or {})}


def share_of(rollout: Rollout, position: Position) -> float:
    """Return what the new version gets of both sides' share, in percent."""
    if position.state == "completed":
        return 100.0
    return float(rollout.steps[position.step]["percent"]) if position.has_traffic else 0.0
