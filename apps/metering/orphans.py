"""How a request ended that nobody settled, because the process that had it is gone: as its engine
recorded it; where its engine is known never to have had it, for nothing; where nothing is known, as
far as its row says."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from django.db.models import BooleanField, Exists, F, Func, OuterRef, Q, QuerySet

from apps.engines.selectors import engine_journals, journal_entries
from apps.engines.types import CONNECTION_LOST
from apps.metering.models import UsageRecord
from apps.metering.types import Ending, Grant, Outcome, Settlement

if TYPE_CHECKING:
    from apps.engines.models import EngineJournal, JournalEntry

# A gateway that lives settles within moments of its engine's last word; or tries every second while
# the database is away, and then nobody reads journals either.
JOURNAL_GRACE: Final = timedelta(seconds=20)
# Every agent reads its engines' journals every ten seconds, unless it is gone.
_READ_WITHIN: Final = timedelta(seconds=30)
# What an engine runs lives on: said at every sweep, well before an agent elsewhere closes its row.
LIFE_LEFT: Final = timedelta(minutes=1)
# The error codes of a row that was closed without a record: of a request that its engine never had,
# and for want of any knowledge.
NOT_STARTED: Final = "not_started"
ORPHANED: Final = "orphaned"
UNRECORDED: Final = Q(outcome=Outcome.FAILED, error_code=NOT_STARTED) | Q(
    outcome=Outcome.INTERRUPTED, error_code=ORPHANED
)
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


def outliving(running: Set[str], now: datetime) -> "QuerySet[UsageRecord]":
    """Return the open rows of requests that their engines still run, and whose life is as good as
    over: those of a server that is frozen, and has neither left nor settled."""
    rows = UsageRecord.objects.filter(_IS_OPEN, expires_at__lt=now + LIFE_LEFT)
    ids = running & set(rows.values_list("request_id", flat=True)) if running else frozenset()
    return UsageRecord.objects.filter(_IS_OPEN, request_id__in=ids)


def overdue(now: datetime) -> Iterator[Settlement]:
    """Yield how to settle the rows whose life is over: by their engine's record; free of charge
    where it is known that there is none; and at the price of their prompts where that is not known,
    nor will be soon."""
    rows = UsageRecord.objects.filter(_IS_OPEN, expires_at__lt=now)
    for part in _parts(rows):
        entries_of, never_started, unread = _entries_of(part), _never_started(part), _unread(part)
        for row in part:
            ending = _ending(row, entries_of[row.request_id])
            if ending is None and row.pk in never_started:
                ending = _unanswered(Outcome.FAILED, NOT_STARTED)
            if ending is None and row.pk in unread and now - row.expires_at < _READ_WITHIN:
                continue
            yield _settlement(row, ending or _unanswered(Outcome.INTERRUPTED, ORPHANED))


def _never_started(rows: Sequence[UsageRecord]) -> set[int]:
    """Return which of these rows are of requests that their engines never had.

    A journal of the same start says so if it is complete since before the row, was read after the
    row's life, in which alone anything is dispatched, or to its engine's end, and has no record of
    it. Names may come again, with their epochs: all journals that may be meant must say so.
    """
    says_all = Q(complete_since__lte=OuterRef("created_at")) & (
        Q(closed_at__isnull=False) | Q(read_at__gt=OuterRef("expires_at"))
    )
    found = UsageRecord.objects.filter(
        Exists(_journals()),
        ~Exists(_journals().exclude(says_all)),
        ~Exists(journal_entries().filter(request_id=OuterRef("request_id"))),
        pk__in=[row.pk for row in rows],
    )
    return set(found.values_list("pk", flat=True))


def _unread(rows: Sequence[UsageRecord]) -> set[int]:
    """Return which of these rows are of engines whose journals were not read since their life."""
    unread = _journals().filter(
        Q(read_at__isnull=True) | Q(read_at__lte=OuterRef("expires_at")), closed_at__isnull=True
    )
    found = UsageRecord.objects.filter(Exists(unread), pk__in=[row.pk for row in rows])
    return set(found.values_list("pk", flat=True))


def _journals() -> "QuerySet[EngineJournal]":
    """Of the start of the engine that a row names."""
    return engine_journals().filter(
        engine_name=OuterRef("engine_name"), epoch=OuterRef("engine_epoch")
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
    return _settlement(row, _unanswered(Outcome.FAILED, "not_recorded"))


def settlement_late(row: UsageRecord) -> Settlement | None:
    """Return how to settle a row by a record that came after it was closed without one; None
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


def _unanswered(outcome: Outcome, error_code: str) -> Ending:
    return Ending(outcome=outcome, n_completion_tokens=0, error_code=error_code, total_ms=None)


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
