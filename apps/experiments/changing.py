"""How an experiment is changed, whatever the change: locked, compared with what the caller saw, and
written with its event."""

from collections.abc import Mapping
from typing import Final

from django.core.exceptions import ValidationError
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump, row_lock
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, Variant
from apps.experiments.types import EXPERIMENTS_STAMP

State: Final = Experiment.State


def locked(experiment: Experiment, seen: int) -> Experiment:
    """Return the experiment as it is now, held for the transaction; raises ExperimentConflict."""
    try:
        current = row_lock(experiment)
    except Experiment.DoesNotExist:
        raise ExperimentConflict(f"{experiment} was deleted by someone else.") from None
    if current.version != seen:
        raise ExperimentConflict(
            f"{current} was changed by someone else; it is {current.state} now. Look again."
        )
    return current


def changed(current: Experiment, action: str, actor: Actor, changes: Mapping[str, object]) -> None:
    current.version += 1
    current.save()
    event_record(action=action, actor=actor, obj=current, changes=changes)
    if current.state != State.DRAFT:
        change_stamp_bump(EXPERIMENTS_STAMP)


def stop(current: Experiment, *, actor: Actor, because: str, winner: Variant | None) -> None:
    """Raises as ``services.experiment_stop``."""
    if current.state != State.RUNNING:
        raise ExperimentConflict(f"{current} does not run: it is {current.state}.")
    if not because.strip():
        raise ValidationError({"because": "Say why; it is what others will read."})
    if winner is not None and winner.experiment_id != current.pk:
        raise ValidationError({"winner": f"{winner} is no variant of {current}."})
    current.state, current.stopped_at = State.STOPPED, timezone.now()
    current.slots, current.winner = [], winner
    current.stopped_because = because.strip()[:500]
    facts = {"because": current.stopped_because, "winner": winner and winner.name}
    changed(current, "experiment.stopped", actor, facts)
