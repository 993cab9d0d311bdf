"""What a worker writes: claims with a lease, lines taken, results, the end of a batch. Each write
names the lease or the attempt that it is made under in its own condition, so that a worker that was
thought dead and comes back changes nothing."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

import msgspec
from django.db import models, transaction
from django.db.models import F
from django.utils import timezone

from apps.batches.exceptions import LeaseLost
from apps.batches.models import Batch, BatchItem, UploadedFile
from apps.batches.selectors import claimable
from apps.batches.types import (
    Claim,
    Ending,
    Line,
    LineError,
    Outcome,
    StoredOutput,
    TakenItem,
)
from apps.core.exceptions import PermissionDenied
from apps.core.ids import new_id
from apps.core.tenancy import every_tenant
from apps.gateway.types import Answer
from apps.rbac.selectors import principal_of_token

_ROWS_AT_ONCE: Final = 500
_CANDIDATES: Final = 8
_PURGE_WITHIN: Final = timedelta(hours=1)


# -- the lease ---------------------------------------------------------------------------------


@every_tenant("workers take whosever batches wait")
@transaction.atomic
def batch_claim_next(*, owner: str, lease_s: float) -> Claim | None:
    """Take the batch that waited longest, and what a lost worker was answering of it."""
    now = timezone.now()
    for pk in claimable(now).values_list("pk", flat=True)[:_CANDIDATES]:
        won = claimable(now).order_by().filter(pk=pk)
        until = now + timedelta(seconds=lease_s)
        if not won.update(lease_owner=owner, lease_until=until, served_at=now):
            continue
        _running(pk).update(state=BatchItem.State.PENDING)
        row = Batch.objects.get(pk=pk)
        return Claim(
            pk=pk,
            tenant_id=row.tenant_id,
            batch_id=row.batch_id,
            owner=owner,
            status=row.status,
            endpoint=row.endpoint,
            input_file_id=row.input_file_id,
            api_token_id=row.api_token_id,
            family_id=row.family_id,
            expires_at=row.expires_at,
        )
    return None


@transaction.atomic
def lease_renew(*, claim: Claim, lease_s: float) -> str:
    """Hold on to the batch; return its status. Raises LeaseLost."""
    until = timezone.now() + timedelta(seconds=lease_s)
    if not _held(claim).update(lease_until=until):
        raise LeaseLost
    return _held(claim).values_list("status", flat=True).get()


def lease_release(*, claim: Claim) -> None:
    """Let others have it; nothing when it is no longer ours."""
    _held(claim).update(lease_owner="", lease_until=None)


# -- validating --------------------------------------------------------------------------------


def lines_store(*, claim: Claim, lines: Sequence[Line]) -> None:
    """Make a row for each line, then let the batch begin. Begins anew what a lost worker left half
    done. In parts, so that nobody else waits long for the database. Raises LeaseLost."""
    items_clear(claim=claim)
    waiting = iter(lines)
    while part := list(islice(waiting, _ROWS_AT_ONCE)):
        with transaction.atomic():
            _lock(claim, Batch.Status.VALIDATING)
            BatchItem.objects.bulk_create(
                BatchItem(
                    batch_id=claim.pk,
                    line_no=line.number,
                    custom_id=line.custom_id,
                    offset=line.offset,
                    n_bytes=line.n_bytes,
                )
                for line in part
            )
    _must(
        _held(claim, Batch.Status.VALIDATING).update(
            status=Batch.Status.IN_PROGRESS, in_progress_at=timezone.now(), n_total=len(lines)
        )
    )


def batch_refuse(*, claim: Claim, errors: Iterable[LineError]) -> None:
    """End a batch whose input is wrong; nothing of it ran. Raises LeaseLost."""
    _must(
        _held(claim, Batch.Status.VALIDATING).update(
            status=Batch.Status.FAILED,
            errors=[error.plain() for error in errors],
            ended_at=timezone.now(),
            lease_owner="",
            lease_until=None,
        )
    )


def items_clear(*, claim: Claim) -> None:
    """Drop the rows of a batch that has not begun. Raises LeaseLost."""
    while True:
        with transaction.atomic():
            _lock(claim)
            rows = BatchItem.objects.filter(batch_id=claim.pk).values_list("pk", flat=True)
            part = list(rows[:_ROWS_AT_ONCE])
            BatchItem.objects.filter(batch_id=claim.pk, pk__in=part).delete()
        if not part:
            return


# -- answering ---------------------------------------------------------------------------------


@transaction.atomic
def items_take(*, claim: Claim, limit: int) -> tuple[TakenItem, ...]:
    """Take the next lines, and ask anew in whose name they run.

    Raises:
        LeaseLost: the batch is not ours, or not in progress any more.
        AuthenticationFailed: the token that made the batch is no longer good.
        PermissionDenied: it may no longer make batches, or its owner may not.
    """
    _lock(claim, Batch.Status.IN_PROGRESS)
    principal = principal_of_token(claim.api_token_id, family_id=claim.family_id)
    if "batches" not in principal.scopes:
        raise PermissionDenied(
            "The token of this batch may no longer make batches.", code="insufficient_scope"
        )
    rows = list(
        BatchItem.objects.filter(batch_id=claim.pk, state=BatchItem.State.PENDING).order_by(
            "line_no"
        )[:limit]
    )
    BatchItem.objects.filter(batch_id=claim.pk, pk__in=[row.pk for row in rows]).update(
        state=BatchItem.State.RUNNING, attempt=F("attempt") + 1
    )
    return tuple(
        TakenItem(
            pk=row.pk,
            batch_pk=claim.pk,
            attempt=row.attempt + 1,
            principal=principal,
            line=Line(
                number=row.line_no,
                custom_id=row.custom_id,
                offset=row.offset,
                n_bytes=row.n_bytes,
            ),
        )
        for row in rows
    )


@transaction.atomic
def item_finish(*, claim: Claim, item: TakenItem, answer: Answer) -> bool:
    """Write a line's result and count it; False when the line is no longer this attempt's."""
    is_done = answer.status == 200
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": msgspec.Raw(answer.body),
    }
    _of(claim).select_for_update().first()  # before its items: one order
    n_rows = _attempt(item).update(
        state=BatchItem.State.DONE if is_done else BatchItem.State.FAILED,
        response=msgspec.json.encode(response).decode(),
    )
    if n_rows:
        field = "n_completed" if is_done else "n_failed"
        _of(claim).update(**{field: F(field) + 1})
    return n_rows == 1


def item_put_back(*, item: TakenItem) -> None:
    """Leave a line for a later attempt."""
    _attempt(item).update(state=BatchItem.State.PENDING)


# -- the end -----------------------------------------------------------------------------------


@transaction.atomic
def closing_begin(*, claim: Claim, outcome: Outcome) -> tuple[str, str]:
    """Let no line be answered any more; return the ids that the files of results will have: always
    the same ones, so that a worker that takes over writes the same files. Raises LeaseLost."""
    _lock(claim)
    _running(claim.pk).update(state=BatchItem.State.PENDING)
    if outcome is Outcome.COMPLETED:
        progress = _held(claim, Batch.Status.IN_PROGRESS, Batch.Status.FINALIZING)
        _must(progress.update(status=Batch.Status.FINALIZING))
        progress.filter(finalizing_at=None).update(finalizing_at=timezone.now())
    row = _of(claim).get()
    if row.in_progress_at is None:  # what there is of its lines may not be all of them
        BatchItem.objects.filter(batch_id=claim.pk).delete()
    if not row.output_file_id:
        row.output_file_id, row.error_file_id = new_id("file"), new_id("file")
        row.save(update_fields=["output_file_id", "error_file_id"])
    return row.output_file_id, row.error_file_id


@transaction.atomic
def batch_end(*, claim: Claim, ending: Ending, output: StoredOutput, errors: StoredOutput) -> None:
    """End the batch and own its files, in one step. Raises LeaseLost."""
    _lock(claim)
    row = _of(claim).get()
    for stored, name in ((output, "output"), (errors, "error")):
        if stored.file_id:
            UploadedFile.objects.create(
                file_id=stored.file_id,
                tenant_id=row.tenant_id,
                filename=f"{row.batch_id}_{name}.jsonl",
                purpose=UploadedFile.Purpose.BATCH_OUTPUT,
                size_bytes=stored.size_bytes,
            )
    row.status = ending.outcome.value
    row.output_file_id, row.error_file_id = output.file_id, errors.file_id
    row.n_failed = row.n_total - row.n_completed
    row.ended_at = timezone.now()
    row.lease_owner, row.lease_until = "", None
    if ending.outcome is Outcome.FAILED:
        row.errors = [LineError(code=ending.code, message=ending.message).plain()]
    row.save()


@every_tenant("lines go when their batch has ended, whosever it was")
@transaction.atomic
def ended_items_purge(*, now: datetime, limit: int = 1000) -> int:
    """Drop rows of batches that have just ended: their results are in the files. Returns how many
    rows it dropped."""
    ended = Batch.objects.filter(ended_at__gt=now - _PURGE_WITHIN).values_list("pk", flat=True)
    rows = BatchItem.objects.filter(batch_id__in=list(ended)).values_list("pk", flat=True)
    part = list(rows.order_by()[:limit])
    BatchItem.objects.filter(pk__in=part).delete()
    return len(part)


# -- conditions --------------------------------------------------------------------------------


def _of(claim: Claim) -> models.QuerySet[Batch]:
    return Batch.objects.filter(pk=claim.pk, tenant_id=claim.tenant_id)


def _held(claim: Claim, *statuses: str) -> models.QuerySet[Batch]:
    return _of(claim).filter(lease_owner=claim.owner, status__in=statuses or Batch.OPEN)


def _lock(claim: Claim, *statuses: str) -> None:
    """Hold the batch's row until the transaction ends."""
    if _held(claim, *statuses).select_for_update().first() is None:
        raise LeaseLost


def _must(n_rows: int) -> None:
    if not n_rows:
        raise LeaseLost


def _running(batch_pk: int) -> models.QuerySet[BatchItem]:
    return BatchItem.objects.filter(batch_id=batch_pk, state=BatchItem.State.RUNNING)


def _attempt(item: TakenItem) -> models.QuerySet[BatchItem]:
    return _running(item.batch_pk).filter(pk=item.pk, attempt=item.attempt)
