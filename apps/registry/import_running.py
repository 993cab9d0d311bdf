"""What a worker does with a job and writes of it: claims with a lease, progress, the end. Each
write names the lease in its own condition, so that a worker that was thought dead and comes back
changes nothing."""

import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import Error as DatabaseError
from django.db import models, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Concat
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import SYSTEM, Actor
from apps.core.exceptions import AppError
from apps.core.ids import new_id
from apps.registry import import_sources
from apps.registry.exceptions import ImportLeaseLost, ModelImportRunning
from apps.registry.models import ImportJob, ModelVersion
from apps.registry.services import import_leftovers_remove, import_model
from apps.registry.types import (
    AlreadyImported,
    ImportClaim,
    ImportEvent,
    ImportProgress,
    SourceIdentified,
)

logger = logging.getLogger(__name__)

# A worker that died this often with the same job may have died of it.
MAX_ATTEMPTS: Final = 5
_LOOK_S: Final = 1.0
_PUT_OFF: Final = timedelta(seconds=5)
_CANDIDATES: Final = 8
_STATUS = ImportJob.Status


class _Cancelled(Exception):
    """The job is to end."""


class _Leaving(Exception):
    """The worker is to end; the job goes on elsewhere."""


def worker_name() -> str:
    return new_id(f"{socket.gethostname()[:60]}:{os.getpid()}")


def imports_work(*, is_stopping: Callable[[], bool]) -> None:
    """Run the jobs that wait, one after the other, until none is left to take."""
    owner = worker_name()
    while not is_stopping() and (claim := import_claim_next(owner=owner)) is not None:
        import_run(claim=claim, is_stopping=is_stopping)


# -- the lease ---------------------------------------------------------------------------------


def claimable(now: datetime) -> "models.QuerySet[ImportJob]":
    """Return the jobs that no worker has in hand, oldest first."""
    free = Q(lease_until=None) | Q(lease_until__lt=now)
    return ImportJob.objects.filter(free, status__in=ImportJob.WORKED_ON).order_by("id")


def import_claim_next(*, owner: str) -> ImportClaim | None:
    """Take the oldest job that waits; end those on the way that are to be cancelled, or that too
    many workers died with."""
    for pk in claimable(timezone.now()).values_list("pk", flat=True)[:_CANDIDATES]:
        claim = import_claim(pk=pk, owner=owner)
        if claim is None:
            continue
        job = ImportJob.objects.get(pk=pk)
        if job.n_attempts > MAX_ATTEMPTS:
            import_leftovers_remove(job.model_name)
            why = f"{MAX_ATTEMPTS} workers ended in the middle of it; it is not tried again."
            _end(claim, _STATUS.FAILED, error=why)
        elif job.status == _STATUS.CANCELLING:
            import_leftovers_remove(job.model_name)
            _end(claim, _STATUS.CANCELLED)
        else:
            return claim
    return None


@transaction.atomic
def import_claim(*, pk: int, owner: str) -> ImportClaim | None:
    """Take one job, unless somebody else has it."""
    now = timezone.now()
    taken = {
        "lease_owner": owner,
        "lease_until": now + timedelta(seconds=settings.IMPORT_LEASE_S),
        "n_attempts": F("n_attempts") + 1,
        "stage": "",
        "stage_done": 0,
        "stage_total": 0,
        "updated_at": now,
    }
    if not claimable(now).order_by().filter(pk=pk).update(**taken):
        return None
    rows = ImportJob.objects.filter(pk=pk)
    rows.filter(status=_STATUS.QUEUED).update(status=_STATUS.RUNNING)
    rows.filter(started_at=None).update(started_at=now)
    job = rows.get()
    claim = ImportClaim(
        pk=pk,
        owner=owner,
        model_name=job.model_name,
        kind=job.kind,
        source=_source(job),
        expected_sha256=job.expected_sha256,
        actor=Actor(kind=job.actor_kind, id=job.actor_id, label=job.actor_label),  # type: ignore[arg-type]
    )
    _note(claim, f"attempt {job.n_attempts} by {owner.rpartition('-')[0]}")
    return claim


def _source(job: ImportJob) -> Path:
    if job.kind == ImportJob.Kind.UPLOAD:
        return import_sources.upload_path(job.job_id, job.source)
    return Path(job.source)


def _held(claim: ImportClaim) -> "models.QuerySet[ImportJob]":
    return ImportJob.objects.filter(
        pk=claim.pk, lease_owner=claim.owner, status__in=ImportJob.WORKED_ON
    )


def _note(claim: ImportClaim, text: str) -> None:
    line = f"{timezone.now():%H:%M:%S} {text}\n"
    _held(claim).update(log=Concat(F("log"), Value(line), output_field=models.TextField()))


@transaction.atomic
def _renew(claim: ImportClaim, **progress: Any) -> str:
    """Hold on to the job; return its status. Raises ImportLeaseLost."""
    now = timezone.now()
    until = now + timedelta(seconds=settings.IMPORT_LEASE_S)
    if not _held(claim).update(lease_until=until, updated_at=now, **progress):
        raise ImportLeaseLost
    return str(_held(claim).values_list("status", flat=True).get())


# -- running -----------------------------------------------------------------------------------


def import_run(
    *,
    claim: ImportClaim,
    is_stopping: Callable[[], bool] = lambda: False,
    on_event: Callable[[ImportEvent], None] = lambda event: None,
) -> None:
    """Import what was claimed and end its job, whatever comes of it. A worker that is told to stop
    lets the job go; so it does on what is no answer, such as an interrupt, which it passes on."""
    watch = _Watch(claim, is_stopping=is_stopping, on_event=on_event)
    try:
        version = _imported(claim, watch)
        _end(claim, _STATUS.DONE, model_version=version)
    except ImportLeaseLost:
        logger.info("Import %d is in other hands, or has ended", claim.pk)
    except _Cancelled:
        _end(claim, _STATUS.CANCELLED)
    except _Leaving:
        _let_go(claim, lease_until=None)
    except ModelImportRunning:
        _let_go(claim, lease_until=timezone.now() + _PUT_OFF)
    except AppError as error:
        _end(
            claim, _STATUS.FAILED, error=_text(error.message), error_param=_text(error.param or "")
        )
    except ValidationError as error:
        _end(claim, _STATUS.FAILED, error=_text("; ".join(error.messages)))
    except OSError as error:
        _end(claim, _STATUS.FAILED, error=f"The disk cannot be used: {error.strerror}.")
    except DatabaseError:
        logger.exception("Import %d waits for the database", claim.pk)
    except Exception:
        logger.exception("Import %d failed", claim.pk)
        _end(claim, _STATUS.FAILED, error="The server had an error while importing; see its log.")
    except BaseException:
        _let_go(claim, lease_until=None)
        raise


def _imported(claim: ImportClaim, watch: "_Watch") -> ModelVersion:
    watch.look()
    source = claim.source
    if claim.kind == ImportJob.Kind.ROOT:  # anew: a link may have been put in its way
        source = import_sources.source_below_roots(str(source))
    return import_model(
        name=claim.model_name,
        source_path=source,
        actor=claim.actor,
        on_event=watch,
        on_wait=watch.look,
        expected_sha256=claim.expected_sha256,
    )


class _Watch:
    """Hears what an import reports, and writes it down now and then; raises to end it."""

    def __init__(
        self,
        claim: ImportClaim,
        *,
        is_stopping: Callable[[], bool],
        on_event: Callable[[ImportEvent], None],
    ) -> None:
        self._claim = claim
        self._is_stopping = is_stopping
        self._on_event = on_event
        self._progress: dict[str, Any] = {"stage": "read"}
        self._looked_at_s = 0.0
        self._good_until_s = time.monotonic() + settings.IMPORT_LEASE_S

    def __call__(self, event: ImportEvent) -> None:
        is_new = False
        match event:
            case SourceIdentified(name=name, sha256=sha256):
                self._progress = {"stage": "check", "source_sha256": sha256}
                _note(self._claim, f"read {name}")
                is_new = True
            case ImportProgress(stage=stage, done=done, total=total):
                is_new = self._progress["stage"] != stage
                self._progress |= {"stage": stage, "stage_done": done, "stage_total": total}
            case AlreadyImported(version=number):
                _note(self._claim, f"it is version {number} already")
        if is_new or time.monotonic() - self._looked_at_s >= _LOOK_S:
            self.look()
        self._on_event(event)

    def look(self) -> None:
        """Renew the lease, and see whether to go on."""
        if self._is_stopping():
            raise _Leaving
        asked_s = time.monotonic()
        try:
            status = _renew(self._claim, **self._progress)
        except DatabaseError:
            if asked_s > self._good_until_s:
                raise ImportLeaseLost from None
            return
        self._looked_at_s, self._good_until_s = asked_s, asked_s + settings.IMPORT_LEASE_S
        if status == _STATUS.CANCELLING:
            raise _Cancelled


def _text(words: str) -> str:
    """What an artifact says may hold what no database takes in a text."""
    return words.encode("utf-8", errors="backslashreplace").decode().replace("\0", "\\0")


def _let_go(claim: ImportClaim, *, lease_until: datetime | None) -> None:
    """Leave the job for another time; this attempt does not count."""
    _held(claim).filter(status=_STATUS.RUNNING).update(status=_STATUS.QUEUED)
    _held(claim).update(
        lease_owner="", lease_until=lease_until, n_attempts=F("n_attempts") - 1, stage=""
    )


def _end(claim: ImportClaim, status: str, **facts: Any) -> None:
    """End the job; then, and only then, its upload goes."""
    try:
        _ended(claim, status, **facts)
    except ImportLeaseLost:
        logger.info("Import %d ended in other hands", claim.pk)


@transaction.atomic
def _ended(claim: ImportClaim, status: str, **facts: Any) -> None:
    _note(claim, f"{status}{': ' if 'error' in facts else ''}{facts.get('error', '')}")
    job = ImportJob.objects.get(pk=claim.pk)
    now = timezone.now()
    if not _held(claim).update(
        status=status, ended_at=now, updated_at=now, lease_owner="", lease_until=None, **facts
    ):
        raise ImportLeaseLost
    if status == _STATUS.FAILED:
        event_record(
            action="import_job.failed", actor=SYSTEM, obj=job, changes={"error": facts["error"]}
        )
    transaction.on_commit(lambda: import_sources.upload_remove(job.job_id))
