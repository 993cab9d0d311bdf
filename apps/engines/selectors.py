"""Reads of engine processes as the agent last observed them."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from django.db.models import QuerySet

from apps.core.files import log_tail
from apps.engines.models import Device, EngineJournal, EngineProcess, JournalEntry
from apps.engines.paths import run_dir_of

EngineState = EngineProcess.State
DeviceKind = Device.Kind

# An agent looks at its machine every ten seconds; what was not seen for so long is not counted on.
NODE_SILENT_AFTER_S: Final = 60.0


def engine_processes() -> list[EngineProcess]:
    """Return every slot, in one query."""
    return list(EngineProcess.objects.all())


def ready_engines() -> list[EngineProcess]:
    """Return the slots that take requests now, in one query."""
    return list(EngineProcess.objects.filter(state=EngineProcess.State.READY))


def devices_seen(now: datetime) -> list[Device]:
    """Return the devices of the machines whose agents were heard of lately, in one query."""
    since = now - timedelta(seconds=NODE_SILENT_AFTER_S)
    return list(Device.objects.filter(node__seen_at__gte=since).select_related("node"))


def devices_of(node_id: int) -> list[Device]:
    """Return the devices of one machine, in one query."""
    return list(Device.objects.filter(node_id=node_id).select_related("node"))


def engine_log_tail(process: EngineProcess, *, n_lines: int = 200) -> list[str]:
    """Return the end of the engine's log; a bounded part of the file is read."""
    return log_tail(Path(process.log_path), n_lines=n_lines) if process.log_path else []


def engine_sockets(var_dir: Path) -> list[Path]:
    """Return the sockets of this machine's engines, without asking the database."""
    return sorted(run_dir_of(var_dir).glob("e*.sock"))


def journal_entries() -> "QuerySet[JournalEntry]":
    """Return what engines recorded of the requests that they ran, to be narrowed down."""
    return JournalEntry.objects.all()


def journal_of(*, request_id: str, epoch: int) -> list[JournalEntry]:
    """Return what one start of an engine recorded of a request, the first part first."""
    entries = JournalEntry.objects.filter(request_id=request_id, journal__epoch=epoch)
    return list(entries.order_by("key"))


def engine_journals() -> "QuerySet[EngineJournal]":
    """Return the journals of all starts of engines, to be narrowed down."""
    return EngineJournal.objects.all()
