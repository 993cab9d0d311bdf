"""What meters should say: the ledger's rows added up. Each comparison is one statement, so that it
sees a moment at which no request is half reserved or half settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import connection, transaction

from apps.core.tenancy import every_tenant
from apps.metering.meters import OPEN
from apps.metering.models import Meter

_DAY: Final = len("2026-01-31")
_MONTH: Final = len("2026-01")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSums:
    """A meter beside the ledger. is_held_off, is_used_off: where they differ."""

    id: int
    scope: str
    period: str
    n_used: int
    n_held: int
    n_used_in_ledger: int
    n_held_in_ledger: int
    is_held_off: bool
    is_used_off: bool


def meters_off(*, since: datetime, limit: int) -> list[MeterSums]:
    """Return the meters that say something else than the ledger, the newest first.

    since: what was used is compared only of days and months that began no earlier; what is held,
    of all.
    """
    midnight = _midnight_after(since)
    month = midnight if midnight.day == 1 else (midnight.replace(day=1) + timedelta(days=32))
    rows = _compared(
        since=since,
        condition="is_held_off = 1 OR is_used_off = 1",
        values=[f"{midnight:%Y-%m-%d}", f"{month:%Y-%m}"],
        limit=limit,
    )
    return [MeterSums(**row) for row in rows]


@every_tenant("a meter is found by its id")
@transaction.atomic
def meter_correct(meter_id: int) -> MeterSums | None:
    """Make a meter say what the ledger says; return what it said before, None if it was right.

    It is locked first: whoever reserves or settles meanwhile moves it before that, and then the
    ledger has it, or after, and then from the right number on.
    """
    meter = Meter.objects.select_for_update().filter(pk=meter_id).first()
    if meter is None:  # pruned meanwhile
        return None
    since = _begin(meter.period)
    rows = _compared(since=since, condition="id = %s", values=["", "", meter_id], limit=1)
    found = MeterSums(**rows[0])
    if not (found.is_held_off or found.is_used_off):
        return None
    Meter.objects.filter(pk=meter_id).update(
        n_held=found.n_held_in_ledger, n_used=found.n_used_in_ledger
    )
    return found


def requests_of(meter: MeterSums, *, limit: int) -> tuple[str, ...]:
    """Return the ids of requests that moved a meter: first of those whose tokens are as many as it
    is off by, then the newest."""
    number, off = "n_charged_tokens", abs(meter.n_used - meter.n_used_in_ledger)
    if meter.is_held_off:
        number, off = "n_reserved_tokens", abs(meter.n_held - meter.n_held_in_ledger)
    begin = _begin(meter.period)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT request_id FROM metering_usagerecord, {_meters_of_row()}
            WHERE created_at >= %s AND {_METER_ID} = %s
            ORDER BY CASE WHEN {number} = %s THEN 0 ELSE 1 END, metering_usagerecord.id DESC
            LIMIT %s
            """,  # noqa: S608 - only constants are put in
            [_stored(begin), meter.id, off, limit],
        )
        return tuple(row[0] for row in cursor.fetchall())


def _compared(
    *, since: datetime, condition: str, values: Sequence[Any], limit: int
) -> list[dict[str, Any]]:
    """values: the first day and the first month of which the ledger has all, then those of the
    condition."""
    statement = f"""
        WITH moved AS (
            SELECT {_METER_ID} AS meter_id,
                   SUM(CASE state WHEN 'reserved' THEN n_reserved_tokens ELSE 0 END) AS n_tokens,
                   SUM(CASE state WHEN 'reserved' THEN 1 ELSE 0 END) AS n_open,
                   SUM(CASE state WHEN 'reserved' THEN 0 ELSE n_charged_tokens END) AS n_charged
            FROM metering_usagerecord, {_meters_of_row()}
            WHERE created_at >= %s OR state = 'reserved'
            GROUP BY 1
        ),
        beside AS (
            SELECT id, scope, period, n_used, n_held,
                   COALESCE(CASE period WHEN '{OPEN}' THEN 0 ELSE n_charged END, 0)
                       AS n_used_in_ledger,
                   COALESCE(CASE period WHEN '{OPEN}' THEN n_open ELSE n_tokens END, 0)
                       AS n_held_in_ledger
            FROM metering_meter LEFT JOIN moved ON metering_meter.id = moved.meter_id
        ),
        compared AS (
            SELECT beside.*,
                   CASE WHEN n_held <> n_held_in_ledger THEN 1 ELSE 0 END AS is_held_off,
                   CASE WHEN n_used <> n_used_in_ledger
                             AND (LENGTH(period) = {_DAY} AND period >= %s
                                  OR LENGTH(period) = {_MONTH} AND period >= %s)
                        THEN 1 ELSE 0 END AS is_used_off
            FROM beside
        )
        SELECT * FROM compared WHERE {condition} ORDER BY id DESC LIMIT %s
    """  # noqa: S608 - only constants are put in
    with connection.cursor() as cursor:
        cursor.execute(statement, [_stored(since), *values, limit])
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    for row in rows:
        row |= {name: int(row[name]) for name in ("n_used_in_ledger", "n_held_in_ledger")}
        row |= {name: bool(row[name]) for name in ("is_held_off", "is_used_off")}
    return rows


def _meters_of_row() -> str:
    if connection.vendor == "postgresql":
        return "jsonb_array_elements_text(meter_ids) AS part (value)"
    return "json_each(meter_ids) AS part"


_METER_ID: Final = "CAST(part.value AS bigint)"


def _begin(period: str) -> datetime:
    """Return when a meter's period began; of one that has no end, the beginning of time."""
    if period == OPEN:
        return datetime(1970, 1, 1, tzinfo=UTC)
    day = period if len(period) == _DAY else f"{period}-01"
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)


def _midnight_after(moment: datetime) -> datetime:
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if midnight == moment else midnight + timedelta(days=1)


def _stored(moment: datetime) -> Any:
    """A moment as a parameter of a statement of one's own."""
    return connection.ops.adapt_datetimefield_value(moment)
