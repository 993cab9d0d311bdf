"""Usage as pages and files show it: read from the roll-ups alone, so that what a page costs depends
on how much it shows and not on how many requests there were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, TypeVar

from django.db.models import QuerySet, Sum

from apps.core.limits import Limits
from apps.metering.histograms import added, empty, percentile_ms
from apps.metering.meters import OPEN
from apps.metering.models import Meter, RefusalRollup, UsageRollup
from apps.tenants.selectors import tenant_limits

R = TypeVar("R", UsageRollup, RefusalRollup)

# By whom or what: the name in a query, and the column.
DIMENSIONS: Final = {
    "tenant": "tenant_id",
    "route": "route_name",
    "token": "api_token_id",
    "model": "model_version_id",
}
_SUMS: Final = (
    "n_requests", "n_failed", "n_prompt_tokens", "n_cached_tokens", "n_completion_tokens",
    "cost_micro",
)  # fmt: skip
# To estimate a percentile each roll-up is read; of more than this many, there is none.
_BUCKETS_MOST: Final = 20_000
_TENANTS_MOST: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which days, both included; whose; and what has a line of its own.

    per: ``day``, ``hour``, or ``span`` for all days in one. by: of ``DIMENSIONS``; None for all.
    in_sight: the tenants that whoever asks may see; None for all.
    """

    first: date
    last: date
    in_sight: frozenset[int] | None = None
    per: str = "day"
    by: str | None = None
    tenant_id: int | None = None
    plan_id: int | None = None
    route_name: str = ""
    api_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """period_start: None of a whole span. subject: whom or what it is by; None of all."""

    period_start: datetime | None = None
    subject: int | str | None = None
    n_requests: int
    n_failed: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int
    cost_micro: int
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    total_p50_ms: float | None = None
    total_p95_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """What a tenant has of a budget. limit, n_left: None where there is no limit."""

    tenant: str
    label: str
    limit: int | None
    n_used: int
    n_held: int

    @property
    def n_left(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.n_used - self.n_held)

    @property
    def percent(self) -> int | None:
        if self.limit is None:
            return None
        return (
            min(100, round(100 * (self.n_used + self.n_held) / self.limit)) if self.limit else 100
        )


def usage_total(query: UsageQuery) -> UsageLine:
    """Return one line over all that a query is about, without percentiles."""
    return UsageLine(**_rollups(query).aggregate(**{name: Sum(name, default=0) for name in _SUMS}))


def refusal_lines(query: UsageQuery) -> list[tuple[str, int]]:
    """Return how many requests were refused, by the code that they were told, the most first; none
    where a query is about what a refused request may not have: a route, a token."""
    if query.route_name or query.api_token_id is not None:
        return []
    rows = _asked_for(query, RefusalRollup.objects.of_tenants(query.in_sight))
    sums = rows.order_by().values("code").annotate(n=Sum("n_requests")).order_by("-n", "code")
    return list(sums.values_list("code", "n"))


def usage_lines(query: UsageQuery, *, offset: int, limit: int) -> list[UsageLine]:
    """Return lines, the newest period first and in it whoever asked most, in two queries."""
    names = _grouping(query)
    rows = list(_grouped(query, names=names)[offset : offset + limit])
    percentiles = _percentiles(query, rows=rows, names=names)
    return [
        UsageLine(
            period_start=row.get("period_start"),
            subject=row[DIMENSIONS[query.by]] if query.by else None,
            **{name: row[name] for name in _SUMS},
            **percentiles.get(tuple(row[name] for name in names), {}),
        )
        for row in rows
    ]


def usage_rollups(query: UsageQuery, *, limit: int) -> list[UsageRollup]:
    """Return the roll-ups themselves, the oldest first: as fine as they are."""
    return list(_rollups(query).order_by("period_start", "id")[:limit])


def budget_lines(tenants: QuerySet[Any], *, now: datetime) -> list[BudgetLine]:
    """Return what each of some tenants, at most fifty, has of its budgets, in two queries."""
    chosen = list(tenants.select_related("plan").order_by("name")[:_TENANTS_MOST])
    day, month = f"{now.astimezone(UTC):%Y-%m-%d}", f"{now.astimezone(UTC):%Y-%m}"
    scopes = [f"tenant:{tenant.pk}" for tenant in chosen]
    found = {
        (meter.scope, meter.period): meter
        for meter in Meter.objects.filter(scope__in=scopes, period__in=(day, month, OPEN))
    }
    return [
        _budget_line(tenant.name, label, limit, found.get((f"tenant:{tenant.pk}", period)))
        for tenant in chosen
        for label, period, limit in _budgets(tenant_limits(tenant), day=day, month=month)
    ]


def _budgets(limits: Limits, *, day: str, month: str) -> Iterator[tuple[str, str, int | None]]:
    yield "Tokens today", day, limits.tokens_per_day
    yield "Tokens this month", month, limits.tokens_per_month
    if limits.max_concurrent_requests is not None:
        yield "Requests at a time", OPEN, limits.max_concurrent_requests


def _budget_line(tenant: str, label: str, limit: int | None, meter: Meter | None) -> BudgetLine:
    return BudgetLine(
        tenant=tenant,
        label=label,
        limit=limit,
        n_used=meter.n_used if meter else 0,
        n_held=meter.n_held if meter else 0,
    )


def _rollups(query: UsageQuery) -> QuerySet[UsageRollup]:
    granularity = "hour" if query.per == "hour" else "day"
    rows = UsageRollup.objects.of_tenants(query.in_sight)
    rollups = _asked_for(query, rows.filter(granularity=granularity).order_by())
    if query.route_name:
        rollups = rollups.filter(route_name=query.route_name)
    if query.api_token_id is not None:
        rollups = rollups.filter(api_token_id=query.api_token_id)
    return rollups


def _asked_for(query: UsageQuery, rows: QuerySet[R]) -> QuerySet[R]:
    """Return the rows of a query's days and tenants."""
    begin = datetime.combine(query.first, time(), tzinfo=UTC)
    end = datetime.combine(query.last, time(), tzinfo=UTC) + timedelta(days=1)
    rows = rows.filter(period_start__gte=begin, period_start__lt=end)
    if query.tenant_id is not None:
        rows = rows.filter(tenant_id=query.tenant_id)
    if query.plan_id is not None:
        rows = rows.filter(tenant__plan_id=query.plan_id)
    return rows


def _grouped(query: UsageQuery, *, names: list[str]) -> Any:
    if not names:  # nothing to group by is not a group for each row
        row = _rollups(query).aggregate(**{name: Sum(name, default=0) for name in _SUMS})
        return [row] if row["n_requests"] else []
    newest = [f"-{name}" for name in names if name == "period_start"]
    rows = _rollups(query).values(*names).annotate(**{name: Sum(name) for name in _SUMS})
    return rows.order_by(*newest, "-n_requests", *names)


def _grouping(query: UsageQuery) -> list[str]:
    names = [] if query.per == "span" else ["period_start"]
    return [*names, *([DIMENSIONS[query.by]] if query.by else [])]


def _percentiles(
    query: UsageQuery, *, rows: Sequence[dict[str, Any]], names: list[str]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the percentiles of some lines, by what they are grouped by."""
    shown = {f"{name}__in": {row[name] for row in rows} for name in names}
    parts = list(
        _rollups(query)
        .filter(**shown)
        .values_list("ttft_buckets", "total_buckets", *names)[: _BUCKETS_MOST + 1]
    )
    if not rows or len(parts) > _BUCKETS_MOST:
        return {}
    sums: dict[tuple[Any, ...], tuple[list[int], list[int]]] = {}
    for ttft, total, *key in parts:
        ttfts, totals = sums.get(tuple(key), (empty(), empty()))
        sums[tuple(key)] = added(ttfts, ttft), added(totals, total)
    return {
        key: {
            f"{name}_p{share}_ms": percentile_ms(buckets, share / 100)
            for name, buckets in (("ttft", ttft), ("total", total))
            for share in (50, 95)
        }
        for key, (ttft, total) in sums.items()
    }
