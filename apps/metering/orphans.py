"""How a request ended that nobody settled, because the process that had it is gone: as its engine
recorded it or, where there is no such record, as far as its row says."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from django.db.models import BooleanField, Exists, F, Func, OuterRef, QuerySet

from apps.engines.selectors import journal_entries
from apps.engines.types import CONNECTION_LOST
from apps.metering.models import UsageRecord
from apps.metering.types import Ending, Grant, Outcome, Settlement

if TYPE_CHECKING:
    from apps.engines.models import JournalEntry

# A gateway that lives settles within moments of its engine's last word; or tries every second while
# the database is away, and then nobody reads journals either.
JOURNAL_GRACE: Final = timedelta(seconds=20)
# The error code of a row that was closed for want of any record.
ORPHANED: Final = "orphaned"
_ROWS_AT_A_TIME: Final = 200
# Spelt out: for a parameter SQLite does not use the index of open rows, and reads the whole ledger.
_IS_OPEN: Final = Func(
    F("state"), template="%(expressions)s = 'reserved'", output_field=BooleanField()
)

logger = logging.getLogger(__name__)


def journaled(now: datetime) -> Iterator[Settlement]:
    """Yield how to settle the open rows whose engine is done with them, by its own count."""
    entries = journal_entries().filter(request_id=OuterRef("request_id"))
    rows = UsageRecord.objects.filter(
        _IS_OPEN, Exists(entries.filter(read_at__lt=now - JOURNAL_GRACE))
    )
    for part in _parts(rows):
        entries_of = _entries_of(part)
        for row in part:
            ending = _ending(row, entries_of[row.request_id])
            if ending is not None:
                yield _settlement(row, ending)


def overdue(now: datetime) -> Iterator[Settlement]:
    """Yield how to settle the rows whose life is over: what their engines made is not known, and
    their prompts are charged."""
    rows = UsageRecord.objects.filter(_IS_OPEN, expires_at__lt=now)
    for part in _parts(rows):
        for row in part:
            yield _settlement(
                row,
                Ending(
                    outcome=Outcome.INTERRUPTED,
                    n_completion_tokens=0,
                    error_code=ORPHANED,
                    total_ms=None,
                ),
            )


def _parts(rows: "QuerySet[UsageRecord]") -> Iterator[list[UsageRecord]]:
    ids = list(rows.order_by("expires_at").values_list("pk", flat=True))
    for start in range(0, len(ids), _ROWS_AT_A_TIME):
        yield list(UsageRecord.objects.filter(pk__in=ids[start : start + _ROWS_AT_A_TIME]))


def unheard(request_id: str) -> Settlement | None:
    """Return how to settle a row that was written without a word of it, so that its request was
    refused; None where there is none."""
    rows = UsageRecord.objects.filter(request_id=request_id, state=UsageRecord.State.RESERVED)
    row = rows.first()
    if row is None:
        return None
    ending = Ending(
        outcome=Outcome.FAILED, n_completion_tokens=0, error_code="not_recorded", total_ms=None
    )
    return _settlement(row, ending)


def settlement_late(row: UsageRecord) -> Settlement | None:
    """Return how to settle a row by a record that came after it was closed for want of one; None
    where there is none that can be believed."""
    ending = _ending(row, _entries_of([row])[row.request_id])
    return None if ending is None else _settlement(row, ending)


def _entries_of(rows: Sequence[UsageRecord]) -> "dict[str, list[JournalEntry]]":
    """Return what the engines of these rows, in the same start, have recorded of them."""
    epochs = {row.request_id: row.engine_epoch for row in rows}
    found: defaultdict[str, list[JournalEntry]] = defaultdict(list)
    entries = journal_entries().filter(request_id__in=epochs).select_related("journal")
    for entry in entries.order_by("ended_at"):
        if entry.journal.epoch == epochs[entry.request_id]:
            found[entry.request_id].append(entry)
    return found


def _ending(row: UsageRecord, entries: "Sequence[JournalEntry]") -> Ending | None:
    """None where the engine has not had all of the request, or says what cannot be."""
    n_prompt = sum(entry.n_prompt_tokens for entry in entries)
    n_completion = sum(entry.n_completion_tokens for entry in entries)
    if not entries or n_prompt != row.n_prompt_tokens:
        return None
    if n_prompt + n_completion > row.n_reserved_tokens:
        logger.error(
            "The journal says %d tokens of %s, of which %d were reserved",
            n_prompt + n_completion,
            row.request_id,
            row.n_reserved_tokens,
        )
        return None
    last = entries[-1]
    return Ending(
        outcome=_outcome(last),
        n_completion_tokens=n_completion,
        n_cached_tokens=sum(entry.n_cached_tokens for entry in entries),
        finish_reason=last.finish_reason,
        error_code=last.error_code,
        ttft_ms=_since(row, last.first_token_at) if n_completion else None,
        total_ms=_since(row, last.ended_at),
    )


def _outcome(entry: "JournalEntry") -> Outcome:
    if entry.error_code == CONNECTION_LOST:
        return Outcome.INTERRUPTED
    if entry.error_code:
        return Outcome.FAILED
    return Outcome.ABORTED if entry.finish_reason == "abort" else Outcome.COMPLETED


def _since(row: UsageRecord, moment: datetime | None) -> float | None:
    if moment is None:
        return None
    return max(0.0, (moment - row.created_at).total_seconds() * 1000)


def _settlement(row: UsageRecord, ending: Ending) -> Settlement:
    return Settlement(
        request_id=row.request_id,
        grant=Grant(n_tokens=row.n_reserved_tokens, meter_ids=tuple(row.meter_ids)),
        n_prompt_tokens=row.n_prompt_tokens,
        prices=row.prices,
        ending=ending,
    )
