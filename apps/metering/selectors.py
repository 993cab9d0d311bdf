"""Whose limits hold for a request; and reads of the ledger, each answered from an index."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import Count, Max, Min, OuterRef, Q, Subquery, Sum

from apps.core.ids import MAX_ATTEMPTS, attempt_id, attempt_ids
from apps.core.limits import UNLIMITED, Limits
from apps.core.tenancy import every_tenant
from apps.metering.audience import route_requests_newest as route_requests_newest
from apps.metering.audience import rows_newest
from apps.metering.models import Meter, UsageRecord, UsageRollup
from apps.metering.observations import rows_before
from apps.metering.reconciliation import findings
from apps.metering.types import (
    Finding,
    MeterState,
    ObservedRequest,
    Outcome,
    RouteTraffic,
    Scope,
    TenantTraffic,
    Tokens,
    UsageTotals,
    Whose,
    Window,
)
from apps.rbac.types import Principal

# How many of the ledger's newest rows are counted at most where somebody watches a route.
TRAFFIC_ROWS: Final = 20_000


@every_tenant("how a route's requests are shared, whosever they are")
def route_traffic(since: Mapping[str, datetime]) -> list[RouteTraffic]:
    """Return what each deployment had of these routes' requests since a moment for each: of at most
    ``TRAFFIC_ROWS`` rows, and of all that are open, whenever they came; in three queries. Kept
    answers are nobody's."""
    if not since:
        return []
    asked = Q()
    for route_name, moment in since.items():
        asked |= Q(route_name=route_name, created_at__gte=moment)
    rows = rows_newest(TRAFFIC_ROWS).filter(asked, is_from_cache=False).order_by()
    failed = Q(outcome__in=(Outcome.FAILED, Outcome.INTERRUPTED))
    counted = rows.values_list("route_name", "deployment_id").annotate(
        n_requests=Count("pk"), n_failed=Count("pk", filter=failed)
    )
    had = {tuple(key): (n_requests, n_failed) for *key, n_requests, n_failed in counted}
    running = UsageRecord.objects.filter(
        state=UsageRecord.State.RESERVED, route_name__in=since, is_from_cache=False
    ).order_by()
    open_ones = running.values_list("route_name", "deployment_id").annotate(n=Count("pk"))
    n_open = {tuple(key): n for *key, n in open_ones}
    return [
        RouteTraffic(
            route_name=key[0],
            deployment_id=key[1],
            n_requests=had.get(key, (0, 0))[0],
            n_open=n_open.get(key, 0),
            n_failed=had.get(key, (0, 0))[1],
        )
        for key in had.keys() | n_open.keys()
    ]


def route_requests(
    route_name: str, *, hour: datetime, day: datetime, within: Collection[int] | None
) -> list[TenantTraffic]:
    """Return what each tenant asked of a route since the beginning of an hour of UTC and since that
    of an earlier one, who asked most first, in one query of the roll-ups. within: ids of tenants
    that may be seen; None is all."""
    hours = UsageRollup.objects.of_tenants(within).filter(
        granularity=UsageRollup.Granularity.HOUR, period_start__gte=day, route_name=route_name
    )
    counted = (
        hours.order_by()
        .values_list("tenant_id")
        .annotate(
            n_day=Sum("n_requests"),
            n_hour=Sum("n_requests", filter=Q(period_start__gte=hour), default=0),
        )
        .order_by("-n_day", "tenant_id")
    )
    return [
        TenantTraffic(tenant_id=tenant_id, n_hour=n_hour, n_day=n_day)
        for tenant_id, n_day, n_hour in counted
    ]


@every_tenant("the overview of the platform")
def usage_of_day(midnight: datetime) -> UsageTotals:
    """Return the totals of the requests that came within a day of UTC, over every tenant: of those
    that have ended and are in the roll-ups, which is so within seconds."""
    days = UsageRollup.objects.filter(
        granularity=UsageRollup.Granularity.DAY, period_start=midnight
    )
    names = ("n_requests", "n_failed", "n_prompt_tokens", "n_completion_tokens")
    return UsageTotals(**days.aggregate(**{name: Sum(name, default=0) for name in names}))


@every_tenant("the health of the platform")
def open_reservations() -> int:
    """Return how many rows are reserved and not settled."""
    return UsageRecord.objects.filter(state=UsageRecord.State.RESERVED).count()


@every_tenant("the health of the platform")
def overdue_reservations(now: datetime) -> tuple[int, datetime | None]:
    """Return how many rows are reserved past their life, and since when the first of them is."""
    found = UsageRecord.objects.filter(
        state=UsageRecord.State.RESERVED, expires_at__lt=now
    ).aggregate(n=Count("pk"), first=Min("expires_at"))
    return found["n"], found["first"]


@every_tenant("the whole ledger is compared")
def ledger_findings(*, since: datetime, now: datetime) -> list[Finding]:
    """Return where the ledger, the budgets and the roll-ups differ, of requests since a midnight.

    It reads the whole ledger since then.
    """
    return findings(Window(since=since, now=now))


def reconciled_since(now: datetime) -> datetime:
    """Return since when to look unless somebody says so: this month and the last."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - timedelta(days=1)).replace(day=1)


def scopes_of(principal: Principal) -> tuple[Scope, ...]:
    """Return the tenant's scope, which is always counted, and the key's if it has limits."""
    tenant = Scope(
        key=f"tenant:{principal.tenant_id}", said="Your organization", limits=principal.limits
    )
    if principal.key_limits == UNLIMITED:
        return (tenant,)
    key = Scope(
        key=f"key:{principal.api_token_id}", said="This API key", limits=principal.key_limits
    )
    return tenant, key


def end_user_scope(*, tenant_id: int, identifier: str, limits: Limits) -> Scope:
    """Return the scope of one whom a tenant serves. Its name does not say who that is."""
    digest = hashlib.sha256(identifier.encode()).hexdigest()[:32]
    return Scope(key=f"user:{tenant_id}:{digest}", said="This end user", limits=limits)


def usage_record_get(*, request_id: str, within: Collection[int] | None) -> UsageRecord | None:
    """Return a request's row. within: ids of tenants that may be seen, None for all; a row of
    another one is not there."""
    return UsageRecord.objects.of_tenants(within).filter(request_id=request_id).first()


def attempts_of(record: UsageRecord) -> list[UsageRecord]:
    """Return the rows of a request that was tried at several places, in that order; else itself."""
    rows = UsageRecord.objects.filter(
        tenant_id=record.tenant_id, request_id__in=attempt_ids(record.request_id, record.attempt)
    )
    return list(rows.order_by("attempt"))


def usage_record_newest(within: Collection[int] | None) -> int:
    """Return the id of the newest row of some tenants, None for all; 0 where there is none.

    Each tenant's is one look into the index. PostgreSQL would rather go through everybody's rows
    from the newest on, which are all of them where a tenant has none or has not asked for long: it
    does so for several tenants at once, and for one as well. Only an order that begins with the
    tenant has the index alone, and an order by what is equal to something counts as none.
    """
    rows = UsageRecord.objects.of_tenants(None)
    if within is None:
        return rows.order_by("-id").values_list("id", flat=True).first() or 0
    own = rows.filter(tenant_id__gte=OuterRef("pk"), tenant_id__lte=OuterRef("pk"))
    newest = Subquery(own.order_by("tenant_id", "-id").values("id")[:1])
    tenants: Any = UsageRollup._meta.get_field("tenant").related_model
    found = tenants.objects.filter(pk__in=within).annotate(newest=newest).aggregate(Max("newest"))
    return int(found["newest__max"] or 0)


@every_tenant("the ledger is compared, whosever it is")
def tokens_of(request_ids: Iterable[str], *, endpoints: Collection[str]) -> dict[str, Tokens]:
    """Return what the ledger says of those requests that are settled and came to ``endpoints``: of
    one that was moved, its last row."""
    asked = {
        attempt_id(request_id, attempt): request_id
        for request_id in request_ids
        for attempt in range(1, MAX_ATTEMPTS + 1)
    }
    rows = UsageRecord.objects.filter(
        request_id__in=asked, endpoint__in=endpoints, state=UsageRecord.State.SETTLED
    ).order_by("attempt")
    return {
        asked[request_id]: Tokens(n_prompt=n_prompt, n_completion=n_completion)
        for request_id, n_prompt, n_completion in rows.values_list(
            "request_id", "n_prompt_tokens", "n_completion_tokens"
        )
    }


@every_tenant("meters are found by their ids, which the row names")
def meters_of(record: UsageRecord) -> list[MeterState]:
    """Return the meters that a request took from, as they stand now; pruned ones are left out."""
    rows = Meter.objects.filter(pk__in=record.meter_ids).order_by("scope", "period")
    return [
        MeterState(scope=row.scope, period=row.period, n_used=row.n_used, n_held=row.n_held)
        for row in rows
    ]


@every_tenant("requests of several tenants are compared")
def requests_before(
    *, route_name: str, since: datetime, until: datetime, whose: Whose, limit: int
) -> list[ObservedRequest]:
    """Return what some subjects had settled on a route within a span, the newest first, in one
    query. Of end users it is answered by their index; of tokens by that of the time, whose rows of
    the whole span it may go through."""
    return rows_before(route_name=route_name, since=since, until=until, whose=whose, limit=limit)
