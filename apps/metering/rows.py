"""What a row of the ledger says when it is reserved and when it is settled, in one place for those
who write one and those who write many."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from apps.metering.models import UsageRecord
from apps.metering.types import Grant, Reservation, Settlement


def reserved_row(reservation: Reservation, *, grant: Grant, now: datetime) -> UsageRecord:
    """Return the row of a request that is about to run, unsaved."""
    row = row_of(reservation, now=now)
    prices = reservation.principal.prices
    row.n_reserved_tokens, row.meter_ids = grant.n_tokens, list(grant.meter_ids)
    row.prompt_micro, row.cached_micro = prices.prompt, prices.cached
    row.completion_micro = prices.completion
    return row


def row_of(reservation: Reservation, *, now: datetime) -> UsageRecord:
    """Return who asks and for what, without what it may cost; unsaved."""
    return UsageRecord(
        request_id=reservation.request_id,
        attempt=reservation.attempt,
        is_fallback=reservation.is_fallback,
        tenant_id=reservation.principal.tenant_id,
        api_token_id=reservation.principal.api_token_id,
        user_id=reservation.principal.user_id,
        end_user=reservation.end_user.replace("\0", "\ufffd"),  # PostgreSQL keeps no NUL
        door=reservation.door,
        endpoint=reservation.endpoint,
        route_name=reservation.route_name,
        experiment_arm=reservation.experiment_arm,
        rollout_arm=reservation.rollout_arm,
        deployment_id=reservation.deployment_id,
        model_version_id=reservation.model_version_id,
        engine_name=reservation.engine_name,
        engine_epoch=reservation.engine_epoch,
        n_prompt_tokens=reservation.n_prompt_tokens,
        created_at=now,
        expires_at=now + timedelta(seconds=reservation.lifetime_s),
    )


def settled_values(settlement: Settlement, *, now: datetime) -> Mapping[str, object]:
    """Return what settling sets, by the names of the columns."""
    return {
        "state": UsageRecord.State.SETTLED.value,
        "settled_at": now,
        **charged_values(settlement),
    }


def charged_values(settlement: Settlement) -> Mapping[str, object]:
    """Return what a row says of how its request ended, and what that costs."""
    ending = settlement.ending
    return {
        "outcome": ending.outcome.value,
        "finish_reason": ending.finish_reason,
        "error_code": ending.error_code[:60],
        "n_charged_tokens": settlement.n_charged_tokens,
        "n_prompt_tokens": settlement.n_prompt_tokens,
        "n_cached_tokens": ending.n_cached_tokens,
        "n_completion_tokens": ending.n_completion_tokens,
        "cost_micro": settlement.cost_micro,
        "ttft_ms": ending.ttft_ms,
        "total_ms": ending.total_ms,
    }
