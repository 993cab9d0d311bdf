"""Reads of engine processes as the agent last observed them."""

from collections import Counter
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db.models import QuerySet

from apps.core.files import log_tail
from apps.core.tenancy import every_tenant
from apps.engines.models import (
    Device,
    EngineCrash,
    EngineJournal,
    EngineProcess,
    EngineSample,
    JournalEntry,
    Node,
    QuarantinedRequest,
    Suspicion,
)
from apps.engines.paths import run_dir_of, sockets_in
from apps.engines.types import Quarantine, Reserved

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


def devices_described() -> "QuerySet[Device]":
    """Return all devices, each with its machine; to be fetched along with what is on them."""
    return Device.objects.select_related("node").order_by("node", "kind", "index")


def devices_of(node_id: int) -> list[Device]:
    """Return the devices of one machine, in one query."""
    return list(Device.objects.filter(node_id=node_id).select_related("node"))


def nodes_described() -> "QuerySet[Node]":
    """Return the machines by name, each with its devices and the replicas that are there."""
    return Node.objects.prefetch_related("devices__replicas__deployment").order_by("name")


def reserved_of(device: Any) -> Reserved:
    """Return what of it is kept for the replicas that are there, which come with their deployments:
    rooms above know of these. No query."""
    own_bytes, awake = 0, Counter[int]()
    n_sharing = 0
    for replica in device.replicas.all():
        n_bytes, kept = replica.estimated_bytes or 0, replica.deployment.asleep_bytes
        if kept is not None:
            n_sharing += 1
            awake[replica.deployment_id] += n_bytes - min(n_bytes, kept)
            n_bytes = min(n_bytes, kept)
        own_bytes += n_bytes
    return Reserved(
        own_bytes=own_bytes,
        shared_bytes=max(awake.values(), default=0),
        n_sharing=n_sharing,
    )


def engine_log_tail(process: EngineProcess, *, n_lines: int = 200) -> list[str]:
    """Return the end of the engine's log; a bounded part of the file is read."""
    return log_tail(Path(process.log_path), n_lines=n_lines) if process.log_path else []


def engine_sockets(var_dir: Path) -> list[Path]:
    """Return the sockets of this machine's engines, without asking the database."""
    return sockets_in(run_dir_of(var_dir))


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


@every_tenant("a gateway serves every tenant")
def quarantine_at(now: datetime) -> Quarantine:
    """Return which requests are refused or suspected, in two queries."""
    refused = QuarantinedRequest.objects.filter(expires_at__gt=now)
    since = now - timedelta(hours=settings.QUARANTINE_HOURS)
    rows = Suspicion.objects.filter(noted_at__gt=since).order_by()
    suspected = rows.values_list("digest", flat=True).distinct()
    return Quarantine(
        refused=dict(refused.values_list("digest", "expires_at")),
        suspected=frozenset(suspected),
    )


def engine_crashes(names: Collection[str], *, limit: int) -> list[EngineCrash]:
    """Return the latest crashes of these engines, the newest first."""
    return list(EngineCrash.objects.filter(engine_name__in=names).order_by("-id")[:limit])


def engine_samples(
    names: Collection[str], *, span_s: int, since: datetime
) -> "QuerySet[EngineSample]":
    """Return how these engines did, a row each ``span_s``, the oldest first."""
    return EngineSample.objects.filter(
        engine_name__in=names, span_s=span_s, at__gte=since
    ).order_by("at")
