"""Writes of the ledger: reserve before dispatch, settle exactly once, close what was orphaned."""

from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.utils import timezone

from apps.metering import budgets, meters
from apps.metering.models import UsageRecord
from apps.metering.rates import count_request
from apps.metering.types import Grant, Reservation, Settlement

__all__ = ["count_request", "orphans_close", "reserve", "settle"]

_ORPHANS_AT_A_TIME: Final = 200


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
    UsageRecord.objects.create(
        request_id=reservation.request_id,
        tenant_id=reservation.principal.tenant_id,
        api_token_id=reservation.principal.api_token_id,
        user_id=reservation.principal.user_id,
        door=reservation.door,
        endpoint=reservation.endpoint,
        route_name=reservation.route_name,
        deployment_id=reservation.deployment_id,
        model_version_id=reservation.model_version_id,
        engine_name=reservation.engine_name,
        engine_epoch=reservation.engine_epoch,
        n_prompt_tokens=reservation.n_prompt_tokens,
        n_reserved_tokens=grant.n_tokens,
        meter_ids=list(grant.meter_ids),
        created_at=now,
        expires_at=now + timedelta(seconds=reservation.lifetime_s),
    )
    return grant


@transaction.atomic
def settle(settlement: Settlement) -> bool:
    """Charge what was used, give back the rest; True for the one call that closed the row.

    The condition on the state is in the UPDATE itself, so that of two callers one wins, whatever
    the database's isolation.
    """
    ending = settlement.ending
    n_rows = UsageRecord.objects.filter(
        request_id=settlement.request_id, state=UsageRecord.State.RESERVED
    ).update(
        state=UsageRecord.State.SETTLED,
        outcome=ending.outcome,
        finish_reason=ending.finish_reason,
        error_code=ending.error_code[:60],
        n_charged_tokens=settlement.n_charged_tokens,
        n_cached_tokens=ending.n_cached_tokens,
        n_completion_tokens=ending.n_completion_tokens,
        ttft_ms=ending.ttft_ms,
        total_ms=ending.total_ms,
        settled_at=timezone.now(),
    )
    if n_rows:
        meters.give_back(
            meter_ids=settlement.grant.meter_ids,
            n_held=settlement.grant.n_tokens,
            n_used=settlement.n_charged_tokens,
        )
    return n_rows == 1


def orphans_close(now: datetime) -> int:
    """Close every row still reserved past its life, as ``interrupted``; return how many.

    Such a row is left by a process that was killed between dispatch and settling. What its engine
    made is not known here: its prompt is charged.
    """
    n_closed = 0
    orphans = UsageRecord.objects.filter(state=UsageRecord.State.RESERVED, expires_at__lt=now)
    while rows := list(orphans.order_by("id")[:_ORPHANS_AT_A_TIME]):
        n_closed += sum(_orphan_close(row, now=now) for row in rows)
    return n_closed


@transaction.atomic
def _orphan_close(row: UsageRecord, *, now: datetime) -> bool:
    n_rows = UsageRecord.objects.filter(pk=row.pk, state=UsageRecord.State.RESERVED).update(
        state=UsageRecord.State.SETTLED,
        outcome=UsageRecord.Outcome.INTERRUPTED,
        error_code="orphaned",
        n_charged_tokens=row.n_prompt_tokens,
        settled_at=now,
    )
    if n_rows:
        meters.give_back(
            meter_ids=row.meter_ids, n_held=row.n_reserved_tokens, n_used=row.n_prompt_tokens
        )
    return n_rows == 1
