"""Does the ledger agree with what the engines recorded? As ``reconciliation`` has its checks.

Compared is what both must know: a row of the ledger was settled from what its engine told the
gateway last, after the engine had recorded the same. Where the way between them was cut, the
client was shown no more than the engine made and is charged for what it was shown.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery, Sum

from apps.engines.selectors import engine_journals, journal_entries
from apps.engines.types import CONNECTION_LOST, ENGINE_DIED
from apps.metering.models import UsageRecord
from apps.metering.orphans import UNRECORDED
from apps.metering.types import Finding, FindingKind, Outcome, Window

# Journals are read every ten seconds, by the clocks of several machines.
_READ_GRACE: Final = timedelta(minutes=1)
_CUT: Final = (ENGINE_DIED, CONNECTION_LOST)


def unjournaled(window: Window) -> Iterator[Finding]:
    """Rows for which an engine is said to have worked, and whose journal has no record of it."""
    read = engine_journals().filter(
        engine_name=OuterRef("engine_name"),
        epoch=OuterRef("engine_epoch"),
        complete_since__lte=OuterRef("created_at"),
        read_at__gt=OuterRef("settled_at"),
    )
    rows = _settled(window).filter(
        Q(outcome=Outcome.COMPLETED) | Q(n_completion_tokens__gt=0),
        Exists(read),
        ~Exists(_entries()),
        settled_at__lt=window.now - _READ_GRACE,
    )
    for row in rows.order_by("id")[: window.limit]:
        yield _finding(
            FindingKind.UNJOURNALED,
            row,
            f"{row.outcome} with {row.n_completion_tokens} tokens, and the journal of "
            f"{row.engine_name}, epoch {row.engine_epoch}, knows nothing of it.",
        )


def unledgered(window: Window) -> Iterator[Finding]:
    """Requests that an engine ran and the ledger does not know."""
    entries = journal_entries().filter(
        ~Exists(UsageRecord.objects.filter(request_id=OuterRef("request_id"))),
        started_at__gte=window.since,
        read_at__lt=window.now - _READ_GRACE,
    )
    for entry in entries.select_related("journal").order_by("id")[: window.limit]:
        yield Finding(
            kind=FindingKind.UNLEDGERED,
            said=f"{entry.journal.engine_name or entry.journal.name}, epoch {entry.journal.epoch}, "
            f"ran it at {entry.started_at:%Y-%m-%d %H:%M:%S} and made "
            f"{entry.n_completion_tokens} tokens; no row was reserved.",
            request_ids=(entry.request_id,),
            subject=entry.pk,
        )


def counted_otherwise(window: Window) -> Iterator[Finding]:
    """Rows whose tokens are other than their engine counted, but for what a cut explains."""
    is_less = Q(n_completion_tokens__lte=F("n_made"), is_cut=True)
    off = (
        Q(outcome=Outcome.COMPLETED) & ~Q(n_prompt_tokens=F("n_read"))
        | ~Q(n_completion_tokens=F("n_made")) & ~is_less
        | ~Q(finish_reason="") & ~Q(n_cached_tokens=F("n_cached"))
    )
    rows = _compared(window).exclude(UNRECORDED).filter(off)
    for row in rows.order_by("id")[: window.limit]:
        yield _finding(
            FindingKind.JOURNAL,
            row,
            f"{row.n_prompt_tokens} tokens of prompt, {row.n_cached_tokens} of them cached, and "
            f"{row.n_completion_tokens} of answer; its engine counted {row.n_read}, {row.n_cached} "
            f"and {row.n_made}.",
        )


def late(window: Window) -> Iterator[Finding]:
    """Rows that were closed without a record, which has come since."""
    rows = _compared(window).filter(UNRECORDED, n_prompt_tokens=F("n_read"))
    for row in rows.order_by("id")[: window.limit]:
        yield _finding(
            FindingKind.LATE,
            row,
            f"Closed as {row.error_code}; by its engine's record, which came later, "
            f"{row.n_made} tokens were made.",
        )


def _settled(window: Window) -> "QuerySet[UsageRecord]":
    return UsageRecord.objects.filter(
        state=UsageRecord.State.SETTLED, is_from_cache=False, created_at__gte=window.since
    )


def _compared(window: Window) -> "QuerySet[Any]":
    """Settled rows beside their engine's counts: n_read of the prompt, n_cached, n_made."""
    return (
        _settled(window)
        .filter(Exists(_entries()))
        .annotate(
            n_read=_sum("n_prompt_tokens"),
            n_cached=_sum("n_cached_tokens"),
            n_made=_sum("n_completion_tokens"),
            is_cut=Exists(_entries().filter(error_code__in=_CUT)),
        )
    )


def _entries() -> "QuerySet[Any]":
    return journal_entries().filter(request_id=OuterRef("request_id"))


def _sum(name: str) -> Subquery:
    """An embedding request of many inputs has several entries."""
    sums = _entries().order_by().values("request_id").annotate(total=Sum(name)).values("total")
    return Subquery(sums)


def _finding(kind: FindingKind, row: UsageRecord, said: str) -> Finding:
    return Finding(kind=kind, said=said, request_ids=(row.request_id,), subject=row.request_id)
