"""Writes of observed state, by the engine agent only."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import F

from apps.core.services import change_stamp_bump
from apps.engines.agent import EngineAgent, is_ready
from apps.engines.devices import node_report
from apps.engines.holding import files_held
from apps.engines.journals import JournalFiles, journals_in
from apps.engines.models import Device, EngineJournal, EngineProcess, JournalEntry, Node
from apps.engines.node_cache import NodeCache
from apps.engines.orphans import orphans_end, orphans_left, processes_serving
from apps.engines.paths import AgentPaths, agent_paths, kv_cache_dir_of
from apps.engines.policy import Timings
from apps.engines.quarantine import (
    crashes_record,
    quarantine_lift,
    suspects_clear,
    suspects_judge,
    suspicions_note,
)
from apps.engines.sampling import Sampler
from apps.engines.types import (
    REPLICAS_STAMP,
    EngineObservation,
    JournalPlace,
    NodeReport,
    RequestEnd,
)
from apps.registry.selectors import artifact_chunks

# The agent's mechanics that the room of deployments drives, and the quarantine's.
__all__ = [
    "AgentPaths",
    "EngineAgent",
    "NodeCache",
    "Sampler",
    "Timings",
    "agent_paths",
    "crashes_record",
    "engine_epoch_take",
    "engine_process_create",
    "engine_processes_remove",
    "files_held",
    "is_ready",
    "journals_read",
    "kv_cache_dir",
    "node_cache",
    "node_record",
    "node_report",
    "observations_record",
    "orphans_end",
    "orphans_left",
    "processes_serving",
    "quarantine_lift",
    "requests_running",
    "stale_states_correct",
    "suspects_clear",
    "suspects_judge",
    "suspicions_note",
]

logger = logging.getLogger(__name__)

_ENTRIES_AT_A_TIME: Final = 1_000
_ENTRIES_AT_MOST: Final = 20_000  # in one run, of one journal
_GONE: Final[dict[str, Any]] = {
    "pid": None,
    "socket_path": "",
    "ping_ms": None,
    "tries_again_at": None,
    "n_fetched_bytes": None,
    "n_fetch_bytes": None,
    "stats": {},  # memory that nobody holds any more would count as held
}


def node_cache() -> NodeCache:
    """Return this node's cache of versions' files, as the settings have it; makes nothing."""
    return NodeCache(
        Path(settings.NODE_CACHE_DIR),
        most_bytes=settings.NODE_CACHE_BYTES,
        read=artifact_chunks,
    )


def kv_cache_dir() -> Path:
    """Return where this node's engines keep what their caches have on disk; makes nothing."""
    return kv_cache_dir_of(Path(settings.VAR_DIR))


def engine_process_create(*, name: str) -> EngineProcess:
    """Make a slot, in the caller's transaction."""
    return EngineProcess.objects.create(name=name)


@transaction.atomic
def engine_epoch_take(process_id: int) -> int:
    """Count a start before it happens, so that no two starts ever share an epoch. What stands there
    of the one before goes: its end may not be written yet, and it would look like the new one's.

    Raises:
        EngineProcess.DoesNotExist: the slot was removed.
    """
    rows = EngineProcess.objects.filter(pk=process_id)
    rows.update(epoch=F("epoch") + 1, state=EngineProcess.State.STARTING, **_GONE)
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
def stale_states_correct() -> int:
    """At the agent's start: nothing runs yet, whatever an agent that was killed left behind. Return
    how many rows said otherwise."""
    stale = EngineProcess.objects.exclude(state=EngineProcess.State.STOPPED, pid=None)
    n_stale = stale.update(state=EngineProcess.State.STOPPED, **_GONE)
    if n_stale:
        change_stamp_bump(REPLICAS_STAMP)
    return n_stale


@transaction.atomic
def node_record(report: NodeReport, *, now: datetime) -> Node:
    """Write what an agent sees of its machine; devices that are gone go."""
    node, _ = Node.objects.update_or_create(
        name=report.name, defaults={"n_cores": report.n_cores, "seen_at": now}
    )
    for device in report.devices:
        fields = asdict(device)
        Device.objects.update_or_create(node=node, uid=fields.pop("uid"), defaults=fields)
    node.devices.exclude(uid__in=[device.uid for device in report.devices]).delete()
    return node


def journals_read(directory: Path, *, now: datetime) -> int:
    """Put what the engines of this machine have recorded into the database; return how many.

    Each record is there once: how far a journal was read moves in the transaction of what was read
    there. Files go once all of them is in the database and their engine is gone. A journal that
    cannot be read is said in the log, and holds up no other.
    """
    n_entries = 0
    for files in journals_in(directory):
        try:
            n_entries += _journal_read(files, now=now)
        except OSError as error:
            logger.error("The journal %s cannot be read: %s", files.name, error)
    return n_entries


def requests_running(directory: Path) -> frozenset[str]:
    """Return the ids of the requests that the engines of this machine run. Ask before reading their
    journals: what has ended meanwhile is there. No database."""
    found: set[str] = set()
    for files in journals_in(directory):
        try:
            found |= files.running()
        except OSError as error:
            logger.error("The journal %s cannot be read: %s", files.name, error)
    return frozenset(found)


def _journal_read(files: JournalFiles, *, now: datetime) -> int:
    is_over = files.is_over()  # before reading: what is read then is all of it
    journal = _journal_row(files)
    n_entries = 0
    if journal.closed_at is None:
        place = JournalPlace(log_number=journal.log_number, log_end=journal.log_end)
        for ends, end in files.added(place, limit=_ENTRIES_AT_A_TIME):
            with transaction.atomic():
                _entries_add(journal, ends, now=now)
                _journal_update(journal, log_number=end.log_number, log_end=end.log_end)
                if not ends:
                    _journal_update(journal, complete_since=now)
            n_entries += len(ends)
            if n_entries >= _ENTRIES_AT_MOST:
                return n_entries
        if is_over:
            n_entries += _journal_close(journal, files, now=now)
        else:
            _journal_update(journal, read_at=now)
    if is_over:
        files.remove()
    else:
        files.trim(JournalPlace(log_number=journal.log_number, log_end=journal.log_end))
    return n_entries


@transaction.atomic
def _journal_close(journal: EngineJournal, files: JournalFiles, *, now: datetime) -> int:
    """Add what its engine had not ended when it died. A machine that went down took more with it,
    and nobody knows of what."""
    unfinished = files.unfinished()
    keys = [end.key for end in unfinished]
    ended = set(journal.entries.filter(key__in=keys).values_list("key", flat=True))
    left = [end for end in unfinished if end.key not in ended]
    _entries_add(journal, left, now=now)
    _journal_update(journal, read_at=now, closed_at=now)
    if files.may_lack_its_end():
        _journal_update(journal, complete_since=now)
    return len(left)


def _journal_row(files: JournalFiles) -> EngineJournal:
    engine = EngineProcess.objects.filter(pk=files.process_id).values_list("name", flat=True)
    return EngineJournal.objects.get_or_create(
        name=files.name,
        defaults={
            "engine_name": engine.first() or "",
            "epoch": files.epoch,
            "complete_since": files.opened_at,
        },
    )[0]


def _journal_update(journal: EngineJournal, **fields: object) -> None:
    for name, value in fields.items():
        setattr(journal, name, value)
    journal.save(update_fields=list(fields))


def _entries_add(journal: EngineJournal, ends: Iterable[RequestEnd], *, now: datetime) -> None:
    JournalEntry.objects.bulk_create(
        [JournalEntry(journal=journal, read_at=now, **asdict(end)) for end in ends]
    )
