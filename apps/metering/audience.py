"""Whose requests a route had of late, for those who look at it before they change it."""

from datetime import datetime
from typing import Final

from apps.core.tenancy import every_tenant
from apps.metering.models import UsageRecord
from apps.metering.observations import observed
from apps.metering.types import ObservedRequest

# Of all routes together no more rows than these are looked at.
_LOOKED_AT: Final = 20_000


@every_tenant("who a change of a route would be felt by, whosever they are")
def route_requests_newest(route_name: str, *, since: datetime, limit: int) -> list[ObservedRequest]:
    """Return the newest settled requests of a route since a moment, the newest first, each once:
    ``limit`` at most, of the newest of all routes."""
    late = UsageRecord.objects.filter(created_at__gte=since)
    newest = late.order_by("-created_at").values("pk")[:_LOOKED_AT]
    rows = UsageRecord.objects.filter(
        pk__in=newest, route_name=route_name, attempt=1, state=UsageRecord.State.SETTLED
    )
    return [observed(row, "experiment") for row in rows.order_by("-created_at")[:limit]]
