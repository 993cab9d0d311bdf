"""Writes of the ledger: reserve before dispatch, settle exactly once, close what was orphaned."""

from datetime import datetime, timedelta

from django.utils import timezone

from apps.metering.models import UsageRecord
from apps.metering.types import Reservation, Settlement


def reserve(reservation: Reservation) -> None:
    """Write the durable row without which nothing is dispatched to an engine.

    Raises:
        IntegrityError: the request id is already in the ledger.
    """
    now = timezone.now()
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
        n_reserved_tokens=reservation.n_reserved_tokens,
        created_at=now,
        expires_at=now + timedelta(seconds=reservation.lifetime_s),
    )


def settle(settlement: Settlement) -> bool:
    """Charge what was used; True for the one call that closed the row.

    The condition on the state is in the UPDATE itself, so that of two callers one wins, whatever
    the database's isolation.
    """
    n_rows = UsageRecord.objects.filter(
        request_id=settlement.request_id, state=UsageRecord.State.RESERVED
    ).update(
        state=UsageRecord.State.SETTLED,
        outcome=settlement.outcome,
        finish_reason=settlement.finish_reason,
        error_code=settlement.error_code[:60],
        n_cached_tokens=settlement.n_cached_tokens,
        n_completion_tokens=settlement.n_completion_tokens,
        ttft_ms=settlement.ttft_ms,
        total_ms=settlement.total_ms,
        settled_at=timezone.now(),
    )
    return n_rows == 1


def orphans_close(now: datetime) -> int:
    """Close every row still reserved past its life, as ``interrupted``; return how many.

    Such a row is left by a process that was killed between dispatch and settling.
    """
    return UsageRecord.objects.filter(state=UsageRecord.State.RESERVED, expires_at__lt=now).update(
        state=UsageRecord.State.SETTLED,
        outcome=UsageRecord.Outcome.INTERRUPTED,
        error_code="orphaned",
        settled_at=now,
    )
