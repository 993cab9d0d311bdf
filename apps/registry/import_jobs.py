"""Writes that people ask for: a job, the pieces of its upload, its end. What a worker writes is in
import_running.py."""

import os
from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import F, QuerySet, Sum
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import SYSTEM, Actor
from apps.core.exceptions import InvalidRequest
from apps.core.ids import new_id
from apps.core.services import worker_wake
from apps.registry import import_sources
from apps.registry.exceptions import ImportNotCancellable, UploadOutOfStep
from apps.registry.models import ImportJob
from apps.registry.types import WAKE_IMPORTS

_UPLOAD_LIFE: Final = timedelta(hours=1)
_WAKE_LIFE_S: Final = 10
_NOT_ARRIVED: Final = "The upload did not go on for an hour."


@transaction.atomic
def import_job_create(
    *, model_name: str, kind: str, source: str, expected_sha256: str, actor: Actor
) -> ImportJob:
    """Queue an import, or, of an upload, wait for its file.

    Raises:
        InvalidRequest: there is no such source below the roots.
        ValidationError: the name or the hash is none.
    """
    if kind == ImportJob.Kind.ROOT:
        source = str(import_sources.source_below_roots(source))
    is_upload = kind == ImportJob.Kind.UPLOAD
    job = ImportJob(
        job_id=new_id("import"),
        model_name=model_name,
        kind=kind,
        source="" if is_upload else source,
        expected_sha256=expected_sha256.strip().lower(),
        status=ImportJob.Status.UPLOADING if is_upload else ImportJob.Status.QUEUED,
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_label=actor.label[:200],
    )
    job.full_clean()
    job.save()
    event_record(
        action="import_job.created",
        actor=actor,
        obj=job,
        changes={"model": model_name, "kind": kind, "source": job.source},
    )
    if kind == ImportJob.Kind.ROOT:
        transaction.on_commit(imports_wake)
    return job


@transaction.atomic
def import_upload_begin(*, job: ImportJob, filename: str, size_bytes: int) -> ImportJob:
    """Say which file comes. The same again goes on with it, another one begins anew.

    Raises:
        InvalidRequest: no source has such a name or size.
        UploadTooLarge: there is no room for it.
        UploadOutOfStep: the job waits for no file.
    """
    name = import_sources.upload_name(filename)
    row = ImportJob.objects.select_for_update().get(pk=job.pk)
    _check_uploading(row)
    if size_bytes < 1:
        raise InvalidRequest("The file is empty.", param="file")
    if (row.source, row.size_bytes) == (name, size_bytes):
        return row
    others = ImportJob.objects.filter(status=ImportJob.Status.UPLOADING).exclude(pk=row.pk)
    promised = others.aggregate(left=Sum(F("size_bytes") - F("n_received_bytes")))["left"] or 0
    import_sources.upload_room_check(size_bytes=size_bytes, promised_bytes=promised)
    row.source, row.size_bytes, row.n_received_bytes = name, size_bytes, 0
    row.save(update_fields=["source", "size_bytes", "n_received_bytes", "updated_at"])
    transaction.on_commit(lambda: import_sources.upload_remove(row.job_id))
    return row


def import_upload_append(*, job: ImportJob, offset: int, data: bytes) -> ImportJob:
    """Write the next piece of an upload; the last one queues the job, if its hash is right.

    Raises:
        InvalidRequest: the piece is empty or longer than what is to come.
        UploadOutOfStep: it does not begin where the last one ended.
        UploadTooLarge: the disk is full.
    """
    _check_uploading(job)
    with import_sources.upload_opened(import_sources.upload_path(job.job_id, job.source)) as file:
        row = ImportJob.objects.get(pk=job.pk)
        _check_uploading(row)
        if (offset, job.source) != (row.n_received_bytes, row.source):
            raise UploadOutOfStep(f"The upload goes on at byte {row.n_received_bytes}.")
        end = offset + len(data)
        if not data or end > row.size_bytes:
            raise InvalidRequest(
                f"A piece of 1 to {row.size_bytes - offset} bytes is expected here, not "
                f"{len(data)}.",
                param="file",
            )
        import_sources.upload_write(file, data, offset=offset)
        sha256 = import_sources.upload_sha256(row.job_id, file, n_bytes=end)
        if end == row.size_bytes:
            os.ftruncate(file, end)
            os.fsync(file)
        if not _received(row, offset=offset).update(
            n_received_bytes=end, updated_at=timezone.now()
        ):
            raise UploadOutOfStep("The upload was cancelled, or began anew.")
    row.refresh_from_db()
    if row.n_received_bytes == row.size_bytes:
        _upload_end(row, sha256=sha256)
        row.refresh_from_db()
    return row


@transaction.atomic
def _upload_end(job: ImportJob, *, sha256: str) -> None:
    arrived = _received(job, offset=job.size_bytes)
    if job.expected_sha256 not in ("", sha256):
        why = f"{job.source} has the SHA-256 {sha256}; {job.expected_sha256} is expected"
        _uploads_fail(job, error=why, param="sha256", source_sha256=sha256)
    elif arrived.update(status=ImportJob.Status.QUEUED, source_sha256=sha256):
        transaction.on_commit(imports_wake)


def _received(job: ImportJob, *, offset: int) -> "QuerySet[ImportJob]":
    return ImportJob.objects.filter(
        pk=job.pk,
        status=ImportJob.Status.UPLOADING,
        source=job.source,
        n_received_bytes=offset,
    )


def _check_uploading(job: ImportJob) -> None:
    if job.status != ImportJob.Status.UPLOADING:
        raise UploadOutOfStep(f"The import is {job.status}; it waits for no file.")


@transaction.atomic
def import_job_cancel(*, job: ImportJob, actor: Actor) -> ImportJob:
    """End an import that waits; ask whoever works on it to stop. Idempotent.

    Raises:
        ImportNotCancellable: it has ended.
    """
    row = ImportJob.objects.select_for_update().get(pk=job.pk)
    if row.status == ImportJob.Status.CANCELLING:
        return row
    if not row.is_open:
        raise ImportNotCancellable(f"The import is {row.status}; it cannot be cancelled any more.")
    if row.status == ImportJob.Status.RUNNING:
        row.status = ImportJob.Status.CANCELLING
        transaction.on_commit(imports_wake)
    else:
        row.status, row.ended_at = ImportJob.Status.CANCELLED, timezone.now()
        transaction.on_commit(lambda: import_sources.upload_remove(row.job_id))
    row.save(update_fields=["status", "ended_at", "updated_at"])
    event_record(action="import_job.cancelled", actor=actor, obj=row)
    return row


def import_uploads_reap() -> None:
    """End uploads that do not go on, and remove what is left of those that ended."""
    old = timezone.now() - _UPLOAD_LIFE
    for job in ImportJob.objects.filter(status=ImportJob.Status.UPLOADING, updated_at__lt=old):
        _uploads_fail(job, error=_NOT_ARRIVED, param="file")
    # Looked at first: whoever makes a directory has made the row before.
    if job_ids := import_sources.upload_ids():
        rows = ImportJob.objects.filter(job_id__in=job_ids, status__in=ImportJob.OPEN)
        for job_id in set(job_ids) - set(rows.values_list("job_id", flat=True)):
            import_sources.upload_remove(job_id)


@transaction.atomic
def _uploads_fail(job: ImportJob, *, error: str, param: str, source_sha256: str = "") -> None:
    n_rows = _received(job, offset=job.n_received_bytes).update(
        status=ImportJob.Status.FAILED,
        error=error,
        error_param=param,
        source_sha256=source_sha256,
        ended_at=timezone.now(),
    )
    if n_rows:
        event_record(action="import_job.failed", actor=SYSTEM, obj=job, changes={"error": error})
        transaction.on_commit(lambda: import_sources.upload_remove(job.job_id))


def imports_wake() -> None:
    worker_wake(WAKE_IMPORTS, expires_s=_WAKE_LIFE_S)
