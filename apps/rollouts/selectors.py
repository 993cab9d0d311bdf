"""Reads of rollouts: what every door tells of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from django.db.models import QuerySet
from django.utils import timezone

from apps.rollouts.approving import approval_refused
from apps.rollouts.checking import Asked, findings
from apps.rollouts.judging import Agreed, judged, missing, reference_step
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.moving import share_of
from apps.rollouts.rows import agreed_of, plan_of, position_of, tallies_of
from apps.rollouts.types import Checked, RolloutReport, StepLine, Tone
from apps.rollouts.wording import line_of, percent_said
from apps.routing.selectors import routes_visible_to

if TYPE_CHECKING:
    from apps.rbac.models import User
    from apps.routing.models import Route

__all__ = [
    "STATE_TONES", "Asked", "open_rollout_of", "open_rollouts_count", "rollout_check",
    "rollout_get", "rollout_report", "rollouts_latest", "rollouts_visible_to",
]  # fmt: skip

_QUIET_AFTER: Final = timedelta(minutes=5)
STATE_TONES: Final[dict[str, Tone]] = {
    "pending": "warn", "running": "busy", "awaiting": "warn", "paused": "warn",
    "completed": "good", "rolled_back": "bad", "aborted": "warn",
}  # fmt: skip


def rollout_check(asked: Asked) -> Checked:
    """Return what speaks against a rollout and what should be known of it; changes nothing."""
    return findings(asked).checked


def rollout_get(pk: int) -> Rollout | None:
    return Rollout.objects.select_related("route", "baseline", "candidate").filter(pk=pk).first()


def open_rollout_of(route: "Route") -> Rollout | None:
    """Return the one that moves a route's traffic now."""
    return Rollout.objects.filter(route=route, state__in=Rollout.OPEN).first()


def rollouts_latest(*, limit: int, route: "Route | None" = None) -> list[Rollout]:
    """Return the latest ones first; of one route, if one is given."""
    rows = Rollout.objects.all() if route is None else Rollout.objects.filter(route=route)
    return list(rows[:limit])


def open_rollouts_count() -> int:
    return Rollout.objects.filter(state__in=Rollout.OPEN).count()


def rollouts_visible_to(user: "User") -> "QuerySet[Rollout]":
    """Return the rollouts of the routes that somebody sees, the latest first. That they may look at
    rollouts at all is the doors' to ask."""
    rows = Rollout.objects.select_related("route")
    visible = routes_visible_to(user)
    return rows if visible is None else rows.filter(route_id__in=visible)


def rollout_report(pk: int, *, by: "User | None" = None) -> RolloutReport | None:
    """Return all that there is to tell of a rollout, in two queries. by: for whom it is told."""
    rollout = Rollout.objects.filter(pk=pk).first()
    if rollout is None:
        return None
    rows = list(RolloutTally.objects.filter(rollout=rollout))
    agreed, now = agreed_of(rollout), timezone.now()
    refused = _refused(rollout, by)
    return RolloutReport(
        id=rollout.pk,
        version=rollout.version,
        route_name=rollout.route_name,
        baseline_name=rollout.baseline_name,
        candidate_name=rollout.candidate_name,
        state=rollout.state,  # type: ignore[arg-type]
        state_label=rollout.get_state_display(),
        tone=STATE_TONES[rollout.state],
        reason=rollout.reason,
        next_said=_next_said(rollout, agreed, rows, now),
        route_id=rollout.route_id,
        baseline_id=rollout.baseline_id,
        candidate_id=rollout.candidate_id,
        percent=share_of(rollout, position_of(rollout)),
        step=rollout.step,
        steps=tuple(_step_line(rollout, agreed, rows, step) for step in range(len(agreed.steps))),
        started_by=rollout.started_by_name,
        started_at=rollout.created_at,
        ended_at=rollout.ended_at,
        needs_second_person=rollout.needs_second_person,
        approval=rollout.approval,
        may_approve=refused == "",
        refused_said=refused,
    )


def _refused(rollout: Rollout, by: "User | None") -> str:
    """Return why this person cannot approve; nothing where they can."""
    if rollout.state not in (Rollout.State.PENDING, Rollout.State.AWAITING):
        return "There is nothing to approve."
    return approval_refused(rollout, by=by, actor=None) or ""


def _step_line(
    rollout: Rollout, agreed: Agreed, rows: Sequence[RolloutTally], step: int
) -> StepLine:
    position = position_of(rollout)
    own = [row for row in rows if row.step == step]
    baseline, candidate = tallies_of(rows, step)
    compared, _ = tallies_of(rows, reference_step(agreed, step))
    verdicts = judged(agreed, step, baseline=compared, candidate=candidate) if own else []
    return StepLine(
        index=step,
        spec=agreed.steps[step],
        is_present=step == position.step and position.has_traffic,
        is_past=step < position.step or rollout.state == Rollout.State.COMPLETED,
        started_at=min((row.started_at for row in own), default=None),
        n_baseline=baseline.n_requests,
        n_candidate=candidate.n_requests,
        n_failed=candidate.n_failed,
        guardrails=tuple(line_of(each) for each in verdicts),
    )


def _next_said(
    rollout: Rollout, agreed: Agreed, rows: Sequence[RolloutTally], now: datetime
) -> str:
    """Say what will happen next, and when."""
    state, name = rollout.state, rollout.candidate_name
    here = percent_said(agreed.steps[rollout.step].percent)
    who = (
        f"somebody other than {rollout.started_by_name}"
        if rollout.needs_second_person
        else ("somebody")
    )
    if state == Rollout.State.PENDING:
        return f"No request goes to {name} until {who} approves it; then {here} do."
    if state == Rollout.State.AWAITING:
        following = percent_said(agreed.steps[rollout.step + 1].percent)
        return f"It stays at {here} until {who} approves {following}. Guardrails still guard."
    if state == Rollout.State.PAUSED:
        return f"It stays at {here} until somebody resumes it. Guardrails still guard."
    if state == Rollout.State.RUNNING:
        return _running_said(rollout, agreed, rows, now)
    return ""


def _running_said(
    rollout: Rollout, agreed: Agreed, rows: Sequence[RolloutTally], now: datetime
) -> str:
    spec, name = agreed.steps[rollout.step], rollout.candidate_name
    _, candidate = tallies_of(rows, rollout.step)
    since = rollout.step_started_at or now
    left = missing(spec, candidate=candidate, since=since, now=now)
    following = rollout.step + 1
    if following == len(agreed.steps):
        then = "It is completed"
    elif plan_of(rollout).waits_before(following):
        then = f"{percent_said(agreed.steps[following].percent)} can be approved"
    else:
        then = f"{percent_said(agreed.steps[following].percent)} follow"
    if left.is_nothing:
        return f"{then} at the next look of the controller, unless a guardrail is breached."
    waits = []
    if left.n_requests:
        noun = "request" if left.n_requests == 1 else "requests"
        waits.append(f"{name} has answered {left.n_requests:,} more {noun}")
    if left.minutes:
        waits.append(f"{_minutes_said(left.minutes)} have passed")
    said = f"{then} once {' and '.join(waits)}."
    quiet_since = max([row.counted_at for row in rows if row.step == rollout.step
                       and row.side == "candidate" and row.counted_at] or [since])  # fmt: skip
    if left.n_requests and now - quiet_since >= _QUIET_AFTER:
        quiet = int((now - quiet_since) / timedelta(minutes=1))
        said += f" No request has come to it for {quiet:,} minutes; it is not moved on without."
    return said


def _minutes_said(minutes: float) -> str:
    if minutes <= 1:
        seconds = max(1, round(60 * minutes))
        return f"{seconds} more {'second' if seconds == 1 else 'seconds'}"
    return f"{minutes:.0f} more minutes" if minutes >= 2 else f"{minutes:.1f} more minutes"
