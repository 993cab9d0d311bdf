"""Whose requests a route had of late, for those who look at it before they change it."""

from datetime import datetime
from typing import Final

from django.db.models import QuerySet

from apps.core.tenancy import every_tenant
from apps.metering.models import UsageRecord
from apps.metering.observations import observed
from apps.metering.types import ObservedRequest

# Of all routes together no more rows than these are looked at.
_LOOKED_AT: Final = 20_000


@every_tenant("who a change of a route would be felt by, whosever they are")
def route_requests_newest(route_name: str, *, since: datetime, limit: int) -> list[ObservedRequest]:
    """Return the newest settled requests of a route since a moment, the newest first, each once:
    ``limit`` at most, of the newest of all routes; in two queries."""
    rows = rows_newest(_LOOKED_AT).filter(
        created_at__gte=since,
        route_name=route_name,
        attempt=1,
        state=UsageRecord.State.SETTLED,
    )
    return [observed(row, "experiment") for row in rows.order_by("-pk")[:limit]]


def rows_newest(n: int) -> "QuerySet[UsageRecord]":
    """Return the newest rows of all, ``n`` at most, at the cost of a query for the last one.

    By a bound that the query carries as a number: of a subquery that ends after so many rows,
    PostgreSQL's planner expects a few and may go through the whole ledger to find them.
    """
    last = UsageRecord.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    return UsageRecord.objects.filter(pk__gt=last - n)
