"""The ledger's writes for many requests in one transaction: four statements, however many they be.

``services.reserve`` and ``services.settle`` say what each write means. Here it is the same for a
group, as if its settlements came first and then its reservations, one by one.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import connection, transaction
from django.utils import timezone

from apps.metering import budgets
from apps.metering.exceptions import LimitExceeded
from apps.metering.locked_meters import LockedMeters, MissingMeters
from apps.metering.meters import make
from apps.metering.models import UsageRecord
from apps.metering.rows import reserved_row, settled_values
from apps.metering.types import Grant, Reservation, Settlement

_fields = {field.name: field for field in UsageRecord._meta.fields}

Outcome = Grant | LimitExceeded | bool


def write_group(writes: Sequence[Reservation | Settlement]) -> list[Outcome]:
    """Reserve and settle; return to each what its service returns, or the refusal it raises.

    All of it is written or, where a statement fails, none: which of the group is at fault is for
    its caller to find out, by trying each alone.

    Raises:
        IntegrityError: a request id is already in the ledger, for example.
    """
    try:
        return _write(writes)
    except MissingMeters as missing:
        make(missing.keys)  # the first requests of a day
        return _write(writes)


@transaction.atomic
def _write(writes: Sequence[Reservation | Settlement]) -> list[Outcome]:
    now = timezone.now()
    reservations = [each for each in writes if isinstance(each, Reservation)]
    settlements = [each for each in writes if isinstance(each, Settlement)]
    closed = _close(settlements, now=now)
    meters = LockedMeters(
        wants=(want for each in reservations for want in budgets.wants_of(each, now=now)),
        meter_ids={meter_id for each in closed.values() for meter_id in each.grant.meter_ids},
    )
    for each in closed.values():
        meters.give_back(
            meter_ids=each.grant.meter_ids,
            n_held=each.grant.n_tokens,
            n_used=each.n_charged_tokens,
        )
    grants = [_grant(each, meters=meters, now=now) for each in reservations]
    meters.save()
    UsageRecord.objects.bulk_create(
        reserved_row(each, grant=grant, now=now)
        for each, grant in zip(reservations, grants, strict=True)
        if isinstance(grant, Grant)
    )
    answers = iter(grants)
    return [
        next(answers)
        if isinstance(each, Reservation)
        else closed.pop(each.request_id, None) is not None
        for each in writes
    ]


def _grant(
    reservation: Reservation, *, meters: LockedMeters, now: datetime
) -> Grant | LimitExceeded:
    try:
        return budgets.reserve(reservation, now=now, hold=meters.hold)
    except LimitExceeded as refusal:
        return refusal


def _close(settlements: Iterable[Settlement], *, now: datetime) -> dict[str, Settlement]:
    """Close the rows that are still reserved, by one statement; return the settlements that did.

    As in ``services.settle`` the condition is in the UPDATE. Of two for one request the first
    counts.
    """
    first: dict[str, Settlement] = {}
    for each in settlements:
        first.setdefault(each.request_id, each)
    if not first:
        return {}
    rows = [settled_values(each, now=now) for each in first.values()]
    fields = [_fields[name] for name in ("request_id", *rows[0])]
    values = [
        field.get_db_prep_save(value, connection)
        for request_id, row in zip(first, rows, strict=True)
        for field, value in zip(fields, (request_id, *row.values()), strict=True)
    ]
    names = [field.name for field in fields]
    # SQLite takes values as they are; PostgreSQL would take a NULL or a time for text.
    is_postgres = connection.vendor == "postgresql"
    mark = ", ".join(
        f"%s::{field.db_type(connection)}" if is_postgres else "%s" for field in fields
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH ended ({", ".join(names)}) AS (VALUES {", ".join([f"({mark})"] * len(rows))})
            UPDATE metering_usagerecord
            SET {", ".join(f"{name} = ended.{name}" for name in names[1:])}
            FROM ended
            WHERE metering_usagerecord.request_id = ended.request_id
              AND metering_usagerecord.state = %s
            RETURNING metering_usagerecord.request_id
            """,  # noqa: S608 - only marks and the columns' names are put in
            [*values, UsageRecord.State.RESERVED.value],
        )
        return {request_id: first[request_id] for (request_id,) in cursor.fetchall()}
