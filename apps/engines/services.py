"""Writes of observed state, by the engine agent only."""

from collections.abc import Collection, Sequence
from dataclasses import asdict

from django.db import transaction
from django.db.models import F

from apps.core.services import change_stamp_bump
from apps.engines.agent import EngineAgent, is_ready, orphan_end
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths, agent_paths
from apps.engines.policy import Timings
from apps.engines.types import REPLICAS_STAMP, EngineObservation

# The agent's mechanics that the room of deployments drives.
__all__ = [
    "AgentPaths",
    "EngineAgent",
    "Timings",
    "agent_paths",
    "engine_epoch_take",
    "engine_process_create",
    "engine_processes_remove",
    "is_ready",
    "observations_record",
    "orphan_end",
    "stale_states_correct",
]

_GONE = {"pid": None, "socket_path": "", "ping_ms": None}


def engine_process_create(*, name: str) -> EngineProcess:
    """Make a slot, in the caller's transaction."""
    return EngineProcess.objects.create(name=name)


@transaction.atomic
def engine_epoch_take(process_id: int) -> int:
    """Count a start before it happens, so that no two starts ever share an epoch.

    Raises:
        EngineProcess.DoesNotExist: the slot was removed.
    """
    EngineProcess.objects.filter(pk=process_id).update(epoch=F("epoch") + 1)
    return EngineProcess.objects.values_list("epoch", flat=True).get(pk=process_id)


@transaction.atomic
def observations_record(
    observations: Sequence[EngineObservation], *, is_routing_changed: bool
) -> None:
    """Write what the agent saw; ``is_routing_changed`` tells the gateways to look again.

    The epoch is only ever written by ``engine_epoch_take``.
    """
    for observation in observations:
        row = asdict(observation)
        del row["epoch"]
        EngineProcess.objects.filter(pk=row.pop("process_id")).update(**row)
    if is_routing_changed:
        change_stamp_bump(REPLICAS_STAMP)


@transaction.atomic
def engine_processes_remove(process_ids: Collection[int]) -> None:
    """Forget slots whose process is gone, with the replicas that they served."""
    n_rows, _ = EngineProcess.objects.filter(pk__in=process_ids).delete()
    if n_rows:
        change_stamp_bump(REPLICAS_STAMP)


@transaction.atomic
def stale_states_correct() -> list[EngineProcess]:
    """At the agent's start: nothing runs yet, whatever an agent that was killed left behind.

    Returns the rows as they were, for those of their processes that may still be draining.
    """
    stale = list(EngineProcess.objects.exclude(state=EngineProcess.State.STOPPED, pid=None))
    if stale:
        EngineProcess.objects.filter(pk__in=[row.pk for row in stale]).update(
            state=EngineProcess.State.STOPPED, **_GONE
        )
        change_stamp_bump(REPLICAS_STAMP)
    return stale
