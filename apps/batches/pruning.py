"""Files that clients stored longer ago than an operator wants to keep them."""

from datetime import timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from apps.batches import storage
from apps.batches.models import Batch, UploadedFile
from apps.core.pruning import ROWS_AT_ONCE, PruneOrder, Pruning, pruning_register
from apps.core.tenancy import every_tenant

_NEVER: Final = 0


def register() -> None:
    pruning_register(
        Pruning(name="files", says="files and results of batches past FILES_KEEP_DAYS", run=_prune)
    )


@every_tenant("what is old is pruned, whosever it was")
def _prune(order: PruneOrder) -> int:
    if settings.FILES_KEEP_DAYS == _NEVER:
        return 0
    old = UploadedFile.objects.filter(
        created_at__lt=order.now - timedelta(days=settings.FILES_KEEP_DAYS)
    )
    if order.is_dry:
        return old.exclude(file_id__in=_read_by_open_batches()).count()
    n_files, last = 0, 0
    while not order.is_over():
        n_seen, n_removed, last = _part_remove(old.filter(pk__gt=last))
        n_files += n_removed
        if n_seen < ROWS_AT_ONCE:
            break
    return n_files


@transaction.atomic
def _part_remove(old: "QuerySet[UploadedFile]") -> tuple[int, int, int]:
    """Return how many rows there were, how many of them went, and the last key.

    A batch is made under the lock of its file's row: once these are locked, what reads them is
    known.
    """
    rows = list(old.select_for_update().order_by("pk")[:ROWS_AT_ONCE])
    reading = set(_read_by_open_batches().filter(input_file_id__in=[row.file_id for row in rows]))
    going = [row for row in rows if row.file_id not in reading]
    UploadedFile.objects.filter(pk__in=[row.pk for row in going]).delete()
    transaction.on_commit(lambda: _bytes_remove([row.file_id for row in going]))
    return len(rows), len(going), rows[-1].pk if rows else 0


def _bytes_remove(file_ids: list[str]) -> None:
    for file_id in file_ids:
        storage.file_remove(file_id)


def _read_by_open_batches() -> "QuerySet[Batch, str]":
    return Batch.objects.filter(status__in=Batch.OPEN).values_list("input_file_id", flat=True)
