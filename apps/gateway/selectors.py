"""Reads of what the doors remember."""

from datetime import datetime, timedelta
from typing import Final

from apps.gateway.idempotency import LIFE
from apps.gateway.models import IdempotentRequest
from apps.gateway.types import KeptRequest

_LOOKED_AT: Final = 500
_LATE: Final = timedelta(minutes=1)  # an answer may be kept that long after its request has settled


def kept_request_of(
    *, request_id: str, tenant_id: int, began_at: datetime, ended_at: datetime
) -> KeptRequest | None:
    """Return the key under which a request's answer is kept; None where there was none, or where
    its day is over. Answers are found by when they end being kept: there is no index of ids."""
    rows = IdempotentRequest.objects.filter(
        tenant_id=tenant_id,
        expires_at__gte=began_at + LIFE,
        expires_at__lte=ended_at + LIFE + _LATE,
    ).order_by("expires_at")
    columns = ("key", "state", "expires_at", "headers")
    for key, state, expires_at, headers in rows.values_list(*columns)[:_LOOKED_AT]:
        if headers.get("X-Request-Id") == request_id:
            said = str(IdempotentRequest.State(state).label)
            return KeptRequest(key=key, state=said, expires_at=expires_at)
    return None
