"""Budgets that cannot be overrun: to hold is one statement over all meters of a request, to settle
another. Whatever runs at the same time, in whatever process, sees either all of it or none.

Rows are locked in the order of their ids, by both statements, so that they cannot deadlock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection
from django.db.models import F

from apps.metering.models import Meter

OPEN: Final = "open"
_NO_CAP: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A request's claim on one meter. cap: None counts and limits nothing.

    least, most: how much must be had at least, and is asked for; 1 of the period ``OPEN``, else
    tokens.
    """

    scope: str
    period: str
    cap: int | None
    least: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A meter, after it was moved or when it could not be."""

    id: int
    scope: str
    period: str
    n_used: int
    n_held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """n_tokens: what was granted of tokens, the same on each meter that counts them."""

    n_tokens: int
    readings: tuple[Reading, ...]


def hold(wants: Sequence[Want]) -> Held | tuple[Reading, ...]:
    """Hold on every meter as much as the emptiest of them can give, or on none.

    Returns what is held; where one has not the least that is wanted, all readings instead.
    """
    if rows := _moved(wants):
        return rows
    make((want.scope, want.period) for want in wants)
    return _moved(wants) or tuple(readings(wants))


def give_back(*, meter_ids: Sequence[int], n_held: int, n_used: int) -> None:
    """Turn what was held into what was used.

    n_held: tokens granted by ``hold``. n_used: of these, those that count; the rest is free again.
    """
    if not meter_ids:
        return
    marks = ", ".join(["%s"] * len(meter_ids))
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH mine AS (
                SELECT id FROM metering_meter WHERE id IN ({marks}) ORDER BY id {lock()}
            )
            UPDATE metering_meter
            SET n_held = n_held - CASE period WHEN '{OPEN}' THEN 1 ELSE %s END,
                n_used = n_used + CASE period WHEN '{OPEN}' THEN 0 ELSE %s END
            WHERE id IN (SELECT id FROM mine)
            """,  # noqa: S608 - only marks and constants are put in
            [*meter_ids, n_held, n_used],
        )


def charge(*, meter_ids: Sequence[int], n_used: int) -> None:
    """Count tokens of a request that holds nothing any more; fewer than none are given back."""
    meters = Meter.objects.filter(pk__in=meter_ids).exclude(period=OPEN).order_by("pk")
    for meter_id in meters.select_for_update().values_list("pk", flat=True):
        Meter.objects.filter(pk=meter_id).update(n_used=F("n_used") + n_used)


def readings(wants: Sequence[Want]) -> list[Reading]:
    """Return the meters as they stand; those that never moved are left out."""
    by_key = {(want.scope, want.period) for want in wants}
    rows = Meter.objects.filter(scope__in={scope for scope, _ in by_key})
    rows = rows.filter(period__in={period for _, period in by_key})
    return [
        Reading(**values)
        for values in rows.values("id", "scope", "period", "n_used", "n_held")
        if (values["scope"], values["period"]) in by_key
    ]


def _moved(wants: Sequence[Want]) -> Held | None:
    values: list[Any] = []
    for want in wants:
        cap = _NO_CAP if want.cap is None else want.cap
        values += [want.scope, want.period, cap, want.least, want.most]
    with connection.cursor() as cursor:
        cursor.execute(_hold_statement(len(wants)), [*values, len(wants)])
        rows = cursor.fetchall()
    if not rows:
        return None
    return Held(
        n_tokens=next((row[5] for row in rows if row[2] != OPEN), 0),
        readings=tuple(
            Reading(id=row[0], scope=row[1], period=row[2], n_used=row[3], n_held=row[4])
            for row in rows
        ),
    )


def _hold_statement(n_wants: int) -> str:
    is_postgres = connection.vendor == "postgresql"
    smaller = "LEAST" if is_postgres else "MIN"
    mark = "(%s, %s, %s::bigint, %s::bigint, %s::bigint)" if is_postgres else "(%s, %s, %s, %s, %s)"
    marks = ", ".join([mark] * n_wants)
    return f"""
        WITH wanted (scope, period, cap, least, most) AS (VALUES {marks}),
        mine AS (
            SELECT id, scope, period, n_used, n_held
            FROM metering_meter
            WHERE (scope, period) IN (SELECT scope, period FROM wanted)
            ORDER BY id {lock()}
        ),
        room AS (
            SELECT COUNT(*) AS n,
                   MIN(CASE WHEN cap - n_used - n_held >= least THEN 1 ELSE 0 END) AS is_enough,
                   MIN(CASE WHEN period <> '{OPEN}'
                            THEN {smaller}(most, cap - n_used - n_held) END) AS n_tokens
            FROM mine JOIN wanted USING (scope, period)
        )
        UPDATE metering_meter
        SET n_held = n_held
            + CASE period WHEN '{OPEN}' THEN 1 ELSE (SELECT n_tokens FROM room) END
        WHERE id IN (SELECT id FROM mine)
          AND (SELECT n FROM room) = %s AND (SELECT is_enough FROM room) = 1
        RETURNING id, scope, period, n_used, n_held, (SELECT n_tokens FROM room)
    """  # noqa: S608 - only marks and constants are put in


def make(keys: Iterable[tuple[str, str]]) -> None:
    """See that there are meters of these scopes and periods. In one order, as all who make some:
    of two who make the same, one waits for the other."""
    Meter.objects.bulk_create(
        [Meter(scope=scope, period=period) for scope, period in sorted(keys)],
        ignore_conflicts=True,
    )


def lock() -> str:
    """Return what locks the rows that a SELECT finds; SQLite, with one writer at a time, has
    nothing to lock."""
    return "FOR UPDATE" if connection.vendor == "postgresql" else ""
