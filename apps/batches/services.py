"""Writes that people and programs ask for: files, batches. What workers write is in running.py."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.batches import storage
from apps.batches.exceptions import FileInUse, FileNotFound, NotCancellable, StorageFull
from apps.batches.models import Batch, UploadedFile
from apps.batches.selectors import is_id
from apps.batches.types import WAKE, Upload
from apps.core.exceptions import PermissionDenied
from apps.core.ids import new_id
from apps.core.services import worker_wake
from apps.rbac.types import Principal

_WINDOW: Final = timedelta(hours=24)
# A message that nobody read in time is worth nothing: the reaper sends another one.
WAKE_LIFE_S: Final = 10


def actor_of_principal(principal: Principal) -> Actor:
    if principal.api_token_id is not None:
        return Actor(kind="token", id=principal.api_token_id, label=principal.label)
    return Actor(kind="user", id=principal.user_id, label=principal.label)


def file_create(*, principal: Principal, upload: Upload) -> UploadedFile:
    """Own a file that was received; its draft becomes the file.

    Raises:
        StorageFull: the tenant stores as much as it may.
    """
    file_id = new_id("file")
    try:
        with transaction.atomic():
            stored = UploadedFile.objects.filter(tenant_id=principal.tenant_id)
            n_bytes = stored.aggregate(total=Sum("size_bytes", default=0))["total"]
            if n_bytes + upload.size_bytes > settings.FILES_MAX_TENANT_BYTES:
                raise StorageFull(
                    f"The files of this tenant may hold {settings.FILES_MAX_TENANT_BYTES} bytes, "
                    f"and hold {n_bytes}: delete some first.",
                    param="file",
                )
            row = UploadedFile.objects.create(
                file_id=file_id,
                tenant_id=principal.tenant_id,
                filename=upload.filename[:255],
                purpose=upload.purpose,
                size_bytes=upload.size_bytes,
            )
            event_record(
                action="file.uploaded",
                actor=actor_of_principal(principal),
                obj=row,
                tenant_id=principal.tenant_id,
                changes={"size_bytes": upload.size_bytes},
            )
            storage.draft_keep(upload.draft, file_id=file_id)
    except BaseException:
        storage.file_remove(file_id)
        raise
    return row


@transaction.atomic
def file_delete(*, principal: Principal, file_id: str) -> None:
    """Remove a file for good.

    Raises:
        FileNotFound: not this tenant's.
        FileInUse: a batch still reads it.
    """
    row = _file_locked(principal, file_id)
    if row is None:
        raise FileNotFound(file_id)
    reader = Batch.objects.filter(
        tenant_id=row.tenant_id, input_file_id=file_id, status__in=Batch.OPEN
    ).first()
    if reader is not None:
        raise FileInUse(f"Batch {reader.batch_id} still reads this file; cancel it first.")
    event_record(
        action="file.deleted",
        actor=actor_of_principal(principal),
        obj=row,
        tenant_id=principal.tenant_id,
    )
    row.delete()
    transaction.on_commit(lambda: storage.file_remove(file_id))


def _file_locked(principal: Principal, file_id: str) -> UploadedFile | None:
    if not is_id(file_id):
        return None
    rows = UploadedFile.objects.select_for_update()
    return rows.filter(tenant_id=principal.tenant_id, file_id=file_id).first()


@transaction.atomic
def batch_create(
    *,
    principal: Principal,
    input_file_id: str,
    endpoint: str,
    metadata: Mapping[str, str] | None,
) -> Batch:
    """Queue the requests of a file, to run in the name of the principal's token.

    Raises:
        FileNotFound: the input is not this tenant's, or no input of batches.
    """
    if principal.api_token_id is None:
        raise PermissionDenied("A batch runs in the name of an API token.")
    source = _file_locked(principal, input_file_id)
    if source is None or source.purpose != UploadedFile.Purpose.BATCH:
        raise FileNotFound(input_file_id, param="input_file_id")
    row = Batch.objects.create(
        batch_id=new_id("batch"),
        tenant_id=principal.tenant_id,
        api_token_id=principal.api_token_id,
        family_id=principal.family_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        metadata=None if metadata is None else dict(metadata),
        expires_at=timezone.now() + _WINDOW,
    )
    event_record(
        action="batch.created",
        actor=actor_of_principal(principal),
        obj=row,
        tenant_id=principal.tenant_id,
        changes={"endpoint": endpoint, "input_file_id": input_file_id},
    )
    transaction.on_commit(wake)
    return row


@transaction.atomic
def batch_cancel(*, batch: Batch, actor: Actor) -> Batch:
    """Ask that no further request of it starts; what was answered is kept. Idempotent.

    Raises:
        NotCancellable: it has ended, or all its requests have.
    """
    row = Batch.objects.select_for_update().get(pk=batch.pk, tenant_id=batch.tenant_id)
    if row.status == Batch.Status.CANCELLING:
        return row
    if row.status not in (Batch.Status.VALIDATING, Batch.Status.IN_PROGRESS):
        raise NotCancellable(f"The batch is {row.status}; it cannot be cancelled any more.")
    row.status = Batch.Status.CANCELLING
    row.cancelling_at = timezone.now()
    row.save(update_fields=["status", "cancelling_at", "updated_at"])
    event_record(action="batch.cancelled", actor=actor, obj=row, tenant_id=row.tenant_id)
    transaction.on_commit(wake)
    return row


def wake() -> None:
    worker_wake(WAKE, expires_s=WAKE_LIFE_S)
