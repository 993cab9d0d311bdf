"""Reads of the batch room. What belongs to another tenant is not there."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, TypeVar

from django.db import models
from django.db.models import Q

from apps.batches.exceptions import BatchNotFound, FileNotFound
from apps.batches.models import Batch, BatchItem, UploadedFile
from apps.core.tenancy import every_tenant

_ID: Final = re.compile(r"[a-z_]{1,16}-[0-9a-f]{32}")
_CHUNK: Final = 500
_BATCHES_LOOKED_AT: Final = 200

_M = TypeVar("_M", bound=models.Model)


def is_id(text: str) -> bool:
    """Whether a client's text may be an id at all; the database need not see what is none."""
    return _ID.fullmatch(text) is not None


def file_get(*, tenant_id: int, file_id: str, param: str | None = None) -> UploadedFile:
    """Raises FileNotFound, naming ``param``."""
    row = None
    if is_id(file_id):
        row = UploadedFile.objects.filter(tenant_id=tenant_id, file_id=file_id).first()
    if row is None:
        raise FileNotFound(file_id, param=param)
    return row


def batch_get(*, tenant_id: int, batch_id: str, param: str | None = None) -> Batch:
    """Raises BatchNotFound, naming ``param``."""
    row = None
    if is_id(batch_id):
        row = Batch.objects.filter(tenant_id=tenant_id, batch_id=batch_id).first()
    if row is None:
        raise BatchNotFound(batch_id, param=param)
    return row


def files_page(
    *, tenant_id: int, limit: int, after: str | None, purpose: str | None, is_ascending: bool
) -> list[UploadedFile]:
    """Return up to ``limit`` files past ``after``."""
    rows = UploadedFile.objects.filter(tenant_id=tenant_id)
    if purpose is not None:
        rows = rows.filter(purpose=purpose)
    last = after and file_get(tenant_id=tenant_id, file_id=after, param="after").pk
    return list(_past(rows, last=last or None, is_ascending=is_ascending)[:limit])


def batches_page(*, tenant_id: int, limit: int, after: str | None) -> list[Batch]:
    """Return up to ``limit`` batches past ``after``, newest first."""
    rows = Batch.objects.filter(tenant_id=tenant_id)
    last = after and batch_get(tenant_id=tenant_id, batch_id=after, param="after").pk
    return list(_past(rows, last=last or None, is_ascending=False)[:limit])


def _past(rows: "models.QuerySet[_M]", *, last: int | None, is_ascending: bool) -> Any:
    if last is not None:
        rows = rows.filter(pk__gt=last) if is_ascending else rows.filter(pk__lt=last)
    return rows.order_by("pk" if is_ascending else "-pk")


def claimable(now: datetime) -> "models.QuerySet[Batch]":
    """Return the open batches that no worker has in hand, who waited longest first: of every
    tenant, within ``every_tenant``."""
    free = Q(lease_until=None) | Q(lease_until__lt=now)
    return Batch.objects.filter(free, status__in=Batch.OPEN).order_by("served_at", "id")


@every_tenant("workers take whosever batches wait")
def is_work_waiting(now: datetime) -> bool:
    return claimable(now).exists()


@every_tenant("the health of the platform")
def is_worker_busy(now: datetime) -> bool:
    """Whether some worker holds a batch: it renews its lease as long as it lives."""
    return Batch.objects.filter(status__in=Batch.OPEN, lease_until__gte=now).exists()


def items_in_order(batch_pk: int) -> Iterator[BatchItem]:
    """Yield the items of a batch by line, in bounded reads."""
    last = 0
    while True:
        rows = list(
            BatchItem.objects.filter(batch_id=batch_pk, line_no__gt=last).order_by("line_no")[
                :_CHUNK
            ]
        )
        yield from rows
        if len(rows) < _CHUNK:
            return
        last = rows[-1].line_no


def batches_at(*, tenant_id: int, api_token_id: int, moment: datetime) -> list[Batch]:
    """Return the batches of a token that were open at a moment, newest first: of the newest
    hundreds of their tenant's until then."""
    newest = Batch.objects.filter(tenant_id=tenant_id, created_at__lte=moment).order_by("-id")
    return [
        batch
        for batch in newest[:_BATCHES_LOOKED_AT]
        if batch.api_token_id == api_token_id
        and (batch.ended_at is None or batch.ended_at >= moment)
    ]
