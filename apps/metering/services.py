"""Writes of the ledger: reserve before dispatch, settle exactly once, close what was orphaned."""

from collections.abc import Iterable, Mapping, Set
from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.tenancy import every_tenant
from apps.metering import budgets, meters, orphans, rollups
from apps.metering.groups import write_group
from apps.metering.meter_sums import meter_correct
from apps.metering.models import RefusalRollup, UsageRecord
from apps.metering.observations import Comparison, rows_take
from apps.metering.rates import count_request, count_requests
from apps.metering.reconciliation import check_register
from apps.metering.rollups import RollupKey
from apps.metering.rows import charged_values, reserved_row, row_of, settled_values
from apps.metering.types import (
    Ending,
    Finding,
    FindingKind,
    Grant,
    ObservedRequest,
    RefusalKey,
    Reservation,
    Settlement,
)

__all__ = [
    "check_register", "count_request", "count_requests", "ledger_correct", "orphans_close",
    "refusals_add", "requests_take", "reservation_void", "reserve", "reused_record", "settle",
    "usage_roll_up", "write_group",
]  # fmt: skip

_ROWS_AT_A_TIME: Final = 200  # on SQLite, requests wait meanwhile
_ROWS_AT_MOST: Final = 50_000


@every_tenant("the ledger is the platform's")
@transaction.atomic
def reserve(reservation: Reservation) -> Grant:
    """Hold what the limits of the request's scopes must give, and write the durable row without
    which nothing is dispatched to an engine: both or neither.

    Raises:
        LimitExceeded: a scope has less left than is of use.
        IntegrityError: the request id is already in the ledger.
    """
    now = timezone.now()
    grant = budgets.reserve(reservation, now=now)
    reserved_row(reservation, grant=grant, now=now).save(force_insert=True)
    return grant


@every_tenant("the ledger is the platform's")
def reused_record(reservation: Reservation, ending: Ending) -> None:
    """Write the row of a request that got a kept answer: settled at once and free of charge, out of
    nobody's budget."""
    now = timezone.now()
    row = row_of(reservation, now=now)
    row.is_from_cache, row.n_reserved_tokens = True, 0
    row.experiment_arm = row.rollout_arm = ""  # no engine's work, and so nobody's
    row.engine_name, row.engine_epoch = "", 0  # an engine's own record knows nothing of it
    row.state, row.outcome = UsageRecord.State.SETTLED, ending.outcome
    row.finish_reason = ending.finish_reason
    row.n_cached_tokens = ending.n_cached_tokens
    row.n_completion_tokens = ending.n_completion_tokens
    row.ttft_ms, row.total_ms = ending.ttft_ms, ending.total_ms
    row.settled_at = now
    row.save(force_insert=True)


@every_tenant("a row is settled by the id of its request")
@transaction.atomic
def settle(settlement: Settlement) -> bool:
    """Charge what was used, give back the rest; True for the one call that closed the row.

    The condition on the state is in the UPDATE itself, so that of two callers one wins, whatever
    the database's isolation.
    """
    n_rows = UsageRecord.objects.filter(
        request_id=settlement.request_id, state=UsageRecord.State.RESERVED
    ).update(**settled_values(settlement, now=timezone.now()))
    if n_rows:
        meters.give_back(
            meter_ids=settlement.grant.meter_ids,
            n_held=settlement.grant.n_tokens,
            n_used=settlement.n_charged_tokens,
        )
    return n_rows == 1


@every_tenant("a row is closed by the id of its request")
def reservation_void(request_id: str) -> bool:
    """Close the row, if there is one, of a request that was refused because nobody could say
    whether its row was written: nothing was dispatched, and nothing is charged. True where one was
    closed."""
    settlement = orphans.unheard(request_id)
    return settlement is not None and settle(settlement)


@every_tenant("the sweep closes whosever rows were orphaned")
def orphans_close(now: datetime, *, running: Set[str] = frozenset()) -> int:
    """Close the rows that were left by a process that was killed; return how many.

    Where its engine is done with a request, by the engine's own record of it and soon; else, once
    the row's life is over, as ``failed`` and free of charge where its engine never had it, and as
    ``interrupted``, at the price of its prompt, where nobody can know. running: ids of requests
    that engines ran before their journals were read; their rows' lives are not over.
    """
    orphans.outliving(running, now).update(expires_at=now + orphans.LIFE_LEFT)
    n_closed = sum(settle(settlement) for settlement in orphans.journaled(now))
    return n_closed + sum(settle(settlement) for settlement in orphans.overdue(now))


@every_tenant("requests of several tenants were refused")
@transaction.atomic
def refusals_add(counts: Mapping[RefusalKey, int]) -> None:
    """Add refused requests to the sums of their hours; in one order, so that two who do cannot
    deadlock."""
    for key in sorted(counts):
        row, _ = RefusalRollup.objects.get_or_create(
            period_start=key.period_start, tenant_id=key.tenant_id, code=key.code[:60]
        )
        RefusalRollup.objects.filter(pk=row.pk).update(n_requests=F("n_requests") + counts[key])


@every_tenant("requests of several tenants are compared")
@transaction.atomic
def requests_take(comparison: Comparison, *, limit: int) -> list[ObservedRequest]:
    """Return settled requests of experiments or of rollouts that were not handed out yet, the
    oldest first, and mark them as counted: commits with whatever the caller makes of them, or not
    at all."""
    return rows_take(comparison, limit=limit)


@every_tenant("sums are made of whatever has settled")
def usage_roll_up(
    *, rows_at_a_time: int = _ROWS_AT_A_TIME, rows_at_most: int = _ROWS_AT_MOST
) -> int:
    """Put settled requests into the sums by hour and by day; return how many were put in.

    It may end, be killed or run beside another at any point. One run does a bounded part of what
    waits, so that after an upgrade the whole past does not hold up other work.
    """
    n_added = 0
    while n_added < rows_at_most:
        n_rows = rollups.rows_add(limit=min(rows_at_a_time, rows_at_most - n_added))
        n_added += n_rows
        if n_rows < rows_at_a_time:
            break
    return n_added


@every_tenant("what is wrong is corrected, whosever it is")
def ledger_correct(findings: Iterable[Finding], *, now: datetime, actor: Actor) -> int:
    """Close what ``reconciliation`` found where that is safe, each by its service and with its
    event; return how many those were. Numbers of rows that were counted wrongly stay."""
    correctable = [finding for finding in findings if finding.is_correctable]
    kinds = {finding.kind for finding in correctable}
    if FindingKind.UNSETTLED in kinds:
        orphans_close(now)
    if FindingKind.NOT_ROLLED_UP in kinds:
        usage_roll_up()
    return sum(_correct(finding, actor=actor) for finding in correctable)


@transaction.atomic
def _correct(finding: Finding, *, actor: Actor) -> bool:
    """False where it was right or pruned by now, which is no event."""
    match finding.kind, finding.subject:
        case FindingKind.METER, int() as meter_id:
            if meter_correct(meter_id) is None:
                return False
        case FindingKind.ROLLUP, RollupKey() as key:
            rollups.rebuild(key)
        case FindingKind.LATE, str() as request_id:
            if not _settle_late(request_id):
                return False
    event_record(
        action="ledger.corrected",
        actor=actor,
        changes={
            "kind": finding.kind.value,
            "found": finding.said,
            "requests": ", ".join(finding.request_ids),
        },
    )
    return True


def _settle_late(request_id: str) -> bool:
    """Charge a row that was closed without a record by the one that came since, and put the
    difference where the old numbers had gone."""
    rows = UsageRecord.objects.filter(orphans.UNRECORDED, request_id=request_id)
    row = rows.select_for_update().first()
    if row is None:
        return False
    settlement = orphans.settlement_late(row)
    if settlement is None:
        return False
    UsageRecord.objects.filter(pk=row.pk).update(**charged_values(settlement))
    n_more = settlement.n_charged_tokens - row.n_charged_tokens
    meters.charge(meter_ids=row.meter_ids, n_used=n_more)
    if row.is_rolled_up:
        for key in rollups.keys_of(row):
            rollups.rebuild(key)
    return True
