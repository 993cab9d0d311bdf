"""The job that takes what the ledger has settled, judges, and moves rollouts on or back.

It keeps nothing in memory. Requests are taken from the ledger and added to the tallies in one
transaction; each rollout is judged and moved, by one transition at most, in one of its own that
holds its row. So it may be killed at any point, and two may run at once: whoever comes later finds
what there was before or after, and never something between.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.utils import timezone

from apps.core.services import change_stamp_bump
from apps.feedback.services import events_take
from apps.feedback.types import FEEDBACK, ObservedEvent
from apps.metering.services import requests_take
from apps.metering.types import ObservedRequest
from apps.rollouts.checking import ready_ids
from apps.rollouts.counting import arm_read, counts, ratings_tallied, tallied
from apps.rollouts.judging import Judged, breach, judged, missing, reference_step
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.moving import CONTROLLER, Move, move
from apps.rollouts.rows import agreed_of, tallies_of, tally_of, tally_write
from apps.rollouts.tallies import Tally
from apps.rollouts.types import ROLLOUTS_STAMP
from apps.rollouts.wording import breach_said, percent_said

logger = logging.getLogger(__name__)

LOST_AFTER: Final = timedelta(seconds=30)
_ROWS_AT_A_TIME: Final = 500
_BATCHES_AT_MOST: Final = 20
_HAVE_TRAFFIC: Final = (Rollout.State.RUNNING, Rollout.State.AWAITING, Rollout.State.PAUSED)

Key = tuple[int, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """What one look did. is_drained: nothing that had settled was left uncounted."""

    n_requests: int
    is_drained: bool
    moved: tuple[int, ...]


def tick(
    *, rows_at_a_time: int = _ROWS_AT_A_TIME, batches_at_most: int = _BATCHES_AT_MOST
) -> Ticked:
    """Count, judge, and move each open rollout by one transition at most."""
    n_requests, is_drained = 0, False
    for _ in range(batches_at_most):
        n_taken = requests_count(limit=rows_at_a_time)
        n_requests += n_taken
        n_taken = max(n_taken, ratings_count(limit=rows_at_a_time))
        if n_taken < rows_at_a_time:
            is_drained = True
            break
    ready = ready_ids()
    moved = []
    open_ids = Rollout.objects.filter(state__in=_HAVE_TRAFFIC).order_by("pk")
    for pk in list(open_ids.values_list("pk", flat=True)):
        try:
            if rollout_judge(pk, ready=ready, is_drained=is_drained):
                moved.append(pk)
        except Exception:  # what is wrong with one must not keep the others from being guarded
            logger.exception("Rollout %s could not be judged", pk)
    return Ticked(n_requests=n_requests, is_drained=is_drained, moved=tuple(moved))


@transaction.atomic
def requests_count(*, limit: int) -> int:
    """Add settled requests to the tallies of their steps; return how many were taken."""
    requests = requests_take("rollout", limit=limit)
    by_key: defaultdict[Key, list[ObservedRequest]] = defaultdict(list)
    for request in requests:
        if counts(request) and (key := arm_read(request.arm)) is not None:
            by_key[key].append(request)
    _tallies_add({key: tallied(rows) for key, rows in by_key.items()})
    return len(requests)


@transaction.atomic
def ratings_count(*, limit: int) -> int:
    """Add what was said of answers to the tallies of those who gave them, a change of mind in place
    of what was counted before; return how many were taken."""
    events = events_take("rollout", limit=limit)
    by_key: defaultdict[Key, list[ObservedEvent]] = defaultdict(list)
    for event in events:
        if event.name == FEEDBACK and (key := arm_read(event.arm)) is not None:
            by_key[key].append(event)
    _tallies_add({key: ratings_tallied(rows) for key, rows in by_key.items()})
    return len(events)


@transaction.atomic
def rollout_judge(pk: int, *, ready: frozenset[int], is_drained: bool) -> bool:
    """Look at one rollout, and return whether it was moved. ready: deployments that answer."""
    rollout = (
        Rollout.objects.select_for_update(of=("self",)).filter(pk=pk, state__in=_HAVE_TRAFFIC)
    ).first()
    if rollout is None:
        return False  # moved by somebody else meanwhile
    now = timezone.now()
    change = _lost(rollout, ready, now) or _judged_change(rollout, is_drained, now)
    rollout.judged_at = now
    if change is not None:
        move(rollout, change)
        return True
    rollout.save(update_fields=["judged_at", "lost_at"])
    return False


def _tallies_add(sums: dict[Key, Tally]) -> None:
    """Add to the tallies, locked in one order: two controllers wait for each other. What is of no
    rollout any more is of no use to anybody."""
    if not sums:
        return
    now = timezone.now()
    known = set(
        Rollout.objects.filter(pk__in={key[0] for key in sums}).values_list("pk", flat=True)
    )
    for rollout_id, step, side in sorted(sums):
        if rollout_id not in known:
            continue
        row, _ = RolloutTally.objects.select_for_update(of=("self",)).get_or_create(
            rollout_id=rollout_id, step=step, side=side, defaults={"started_at": now}
        )
        added = sums[rollout_id, step, side]
        tally_write(row, tally_of(row) + added)
        row.counted_at = now if added.n_requests else row.counted_at
        row.save()
    change_stamp_bump(ROLLOUTS_STAMP)


def _lost(rollout: Rollout, ready: frozenset[int], now: datetime) -> Move | None:
    """Note since when the new version has no ready replica; return the way back where that is too
    long. While the old one has none either, as after a restart of all, it would be no way back."""
    if rollout.candidate_id in ready or rollout.baseline_id not in ready:
        rollout.lost_at = None
        return None
    rollout.lost_at = rollout.lost_at or now
    if now - rollout.lost_at < LOST_AFTER:
        return None
    percent = percent_said(rollout.steps[rollout.step]["percent"])
    lost_s = round((now - rollout.lost_at).total_seconds())
    return Move(
        event="candidate_lost",
        actor=CONTROLLER,
        reason=f"Rolled back at {percent}: {rollout.candidate_name} has had no ready replica for "
        f"{lost_s} seconds.",
    )


def _judged_change(rollout: Rollout, is_drained: bool, now: datetime) -> Move | None:
    """Return what the figures ask for: the way back, the next step, or nothing yet."""
    agreed, step = agreed_of(rollout), rollout.step
    rows = list(RolloutTally.objects.filter(rollout=rollout, step__gte=step - 1, step__lte=step))
    baseline, _ = tallies_of(rows, reference_step(agreed, step))
    _, candidate = tallies_of(rows, step)
    spec = agreed.steps[step]

    def facts(breached: Judged | None) -> dict[str, object]:
        return _facts(judged(agreed, step, baseline=baseline, candidate=candidate), breached)

    if (worst := breach(agreed, step, baseline=baseline, candidate=candidate)) is not None:
        return Move(
            event="guardrail_breached",
            actor=CONTROLLER,
            reason=breach_said(worst, percent=spec.percent, candidate=rollout.candidate_name),
            facts=facts(worst),
        )
    if rollout.state != Rollout.State.RUNNING or not is_drained:
        return None
    since = rollout.step_started_at or now
    if not missing(spec, candidate=candidate, since=since, now=now).is_nothing:
        return None
    reason = (
        f"{percent_said(spec.percent)} passed: {candidate.n_judged:,} requests of "
        f"{rollout.candidate_name}, {candidate.n_failed:,} failed; no guardrail was breached."
    )
    return Move(event="step_passed", actor=CONTROLLER, reason=reason, facts=facts(None))


def _facts(verdicts: list[Judged], breached: Judged | None) -> dict[str, object]:
    """Return the figures for the audit trail."""
    figures = {
        each.guardrail.metric: {
            "old": each.baseline,
            "new": each.candidate,
            "worse_by": [each.low, each.high],
            "allowed": each.guardrail.tolerance,
            "n": [each.n_baseline, each.n_candidate],
        }
        for each in verdicts
    }
    facts: dict[str, object] = {"figures": figures}
    if breached is not None:
        facts["breached"] = breached.guardrail.metric
    return facts
