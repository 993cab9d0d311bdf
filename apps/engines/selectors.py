"""Reads of engine processes as the agent last observed them."""

from pathlib import Path

from django.db.models import QuerySet

from apps.core.files import log_tail
from apps.engines.models import EngineJournal, EngineProcess, JournalEntry
from apps.engines.paths import run_dir_of

EngineState = EngineProcess.State


def engine_processes() -> list[EngineProcess]:
    """Return every slot, in one query."""
    return list(EngineProcess.objects.all())


def ready_engines() -> list[EngineProcess]:
    """Return the slots that take requests now, in one query."""
    return list(EngineProcess.objects.filter(state=EngineProcess.State.READY))


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
