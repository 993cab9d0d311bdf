"""Between rows and what the pure parts of the room speak of."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.utils import timezone

from apps.rollouts.judging import Agreed
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.tallies import Tally
from apps.rollouts.transitions import Plan, Position
from apps.rollouts.types import GuardrailSpec, StepSpec
from apps.statistics.moments import Moments

SIDES: Final = ("baseline", "candidate")


def holder_of(rollout: Rollout) -> str:
    """Return what holds its route, as people are told of it."""
    return f"rollout {rollout.pk}"


def steps_stored(steps: Iterable[StepSpec]) -> list[dict[str, Any]]:
    return [
        {
            "percent": each.percent,
            "min_requests": each.min_requests,
            "min_minutes": each.min_minutes,
        }
        for each in steps
    ]


def guardrails_stored(guardrails: Iterable[GuardrailSpec]) -> list[dict[str, Any]]:
    return [{"metric": each.metric, "tolerance": each.tolerance} for each in guardrails]


def agreed_of(rollout: Rollout) -> Agreed:
    return Agreed(
        steps=tuple(StepSpec(**each) for each in rollout.steps),
        guardrails=tuple(GuardrailSpec(**each) for each in rollout.guardrails),
        alpha=rollout.alpha,
    )


def plan_of(rollout: Rollout) -> Plan:
    return Plan(
        n_steps=len(rollout.steps),
        approval=rollout.approval,  # type: ignore[arg-type]
        needs_second_person=rollout.needs_second_person,
    )


def position_of(rollout: Rollout) -> Position:
    return Position(
        state=rollout.state,  # type: ignore[arg-type]
        step=rollout.step,
        paused_from=rollout.paused_from or None,  # type: ignore[arg-type]
    )


def tally_of(row: RolloutTally | None) -> Tally:
    """Return the sums of a row; nothing of none."""
    if row is None:
        return Tally()
    return Tally(
        n_requests=row.n_requests,
        n_failed=row.n_failed,
        sums={name: Moments.from_json(sums) for name, sums in row.sums.items()},
    )


def tally_write(row: RolloutTally, tally: Tally) -> None:
    row.n_requests, row.n_failed = tally.n_requests, tally.n_failed
    row.sums = {name: moments.to_json() for name, moments in sorted(tally.sums.items())}


def tallies_begin(rollout: Rollout) -> None:
    """Make the tallies of its present step, where they are not there yet."""
    now = timezone.now()
    for side in SIDES:
        RolloutTally.objects.get_or_create(
            rollout=rollout, step=rollout.step, side=side, defaults={"started_at": now}
        )


def tallies_of(rows: Sequence[RolloutTally], step: int | None) -> tuple[Tally, Tally]:
    """Return the sums of the old and of the new version in a step."""
    by_side = {row.side: row for row in rows if row.step == step}
    baseline, candidate = (tally_of(by_side.get(side)) for side in SIDES)
    return baseline, candidate
