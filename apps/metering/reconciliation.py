"""Does the ledger agree with itself? Each check reads one thing twice, in one statement, and names
the requests where the two differ. Nothing is changed here: ``services.ledger_correct`` does that.

A further source is one more check in ``CHECKS``, or, of a room above, one that it registers.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import (
    Case,
    Count,
    F,
    IntegerField,
    Q,
    QuerySet,
    Sum,
    Value,
    When,
)  # fmt: skip
from django.db.models.functions import Coalesce, Least, Trunc

from apps.metering import journal_checks
from apps.metering.meter_sums import MeterSums, meters_off, requests_of
from apps.metering.models import UsageRecord, UsageRollup
from apps.metering.rollups import FAILURES, SPANS, RollupKey, rows_of
from apps.metering.types import Finding, FindingKind, Window

Check = Callable[[Window], Iterator[Finding]]

# Younger ones are on their way: the sweep and the roll-up look every ten seconds.
_SWEEP_GRACE: Final = timedelta(minutes=1)
_ROLL_UP_GRACE: Final = timedelta(minutes=15)
_N_NAMED: Final = 3
_SETTLED: Final = UsageRecord.State.SETTLED
_SUMS: Final = (
    "n_requests", "n_failed", "n_prompt_tokens", "n_cached_tokens", "n_completion_tokens",
    "cost_micro",
)  # fmt: skip
_KEY: Final = ("start", "tenant", "token", "route", "version")


def unsettled(window: Window) -> Iterator[Finding]:
    """Rows that nobody settled within their life."""
    rows = UsageRecord.objects.filter(
        state=UsageRecord.State.RESERVED, expires_at__lt=window.now - _SWEEP_GRACE
    )
    for row in rows.order_by("id")[: window.limit]:
        yield Finding(
            kind=FindingKind.UNSETTLED,
            said=f"Reserved at {_at(row.created_at)}, over at {_at(row.expires_at)}, and not "
            f"settled. It holds {row.n_reserved_tokens} tokens.",
            request_ids=(row.request_id,),
            subject=row.request_id,
        )


def miscounted(window: Window) -> Iterator[Finding]:
    """Rows whose charge or cost is another than their tokens and prices make."""
    no_answer = When(outcome=UsageRecord.Outcome.FAILED, n_completion_tokens=0, then=Value(0))
    cached: Any = Least("n_cached_tokens", "n_prompt_tokens")
    rows = UsageRecord.objects.filter(state=_SETTLED, created_at__gte=window.since).annotate(
        charge=Case(
            no_answer,
            default=F("n_prompt_tokens") + F("n_completion_tokens"),
            output_field=IntegerField(),
        ),
        price=Case(
            no_answer,
            default=(F("n_prompt_tokens") - cached) * F("prompt_micro")
            + cached * F("cached_micro")
            + F("n_completion_tokens") * F("completion_micro"),
            output_field=IntegerField(),
        ),
    )
    # Rows from before there were budgets name no meters, and were charged nothing.
    wrong = rows.filter(
        ~Q(n_charged_tokens=F("charge")) & ~Q(meter_ids=[]) | ~Q(cost_micro=F("price"))
    )
    for row in wrong.order_by("id")[: window.limit]:
        yield Finding(
            kind=FindingKind.MISCOUNTED,
            said=f"Charged {row.n_charged_tokens} tokens and {row.cost_micro} micros; its tokens "
            f"and prices make {row.charge} and {row.price}.",
            request_ids=(row.request_id,),
            subject=row.request_id,
        )


def meters(window: Window) -> Iterator[Finding]:
    """Meters that hold or have used something else than the rows that name them."""
    for meter in meters_off(since=window.since, limit=window.limit):
        yield Finding(
            kind=FindingKind.METER,
            said=f"{meter.scope} {meter.period}: {_meter_said(meter)}.",
            request_ids=requests_of(meter, limit=_N_NAMED),
            subject=meter.id,
        )


def not_rolled_up(window: Window) -> Iterator[Finding]:
    """Rows that were settled some time ago and are in no roll-up."""
    rows = UsageRecord.objects.filter(
        state=_SETTLED, is_rolled_up=False, settled_at__lt=window.now - _ROLL_UP_GRACE
    )
    for row in rows.order_by("id")[: window.limit]:
        assert row.settled_at is not None
        yield Finding(
            kind=FindingKind.NOT_ROLLED_UP,
            said=f"Settled at {_at(row.settled_at)} and not rolled up: does Celery's beat run?",
            request_ids=(row.request_id,),
            subject=row.request_id,
        )


def rollups(window: Window) -> Iterator[Finding]:
    """Roll-ups that are not the sum of their rows."""
    n_found = 0
    for granularity in SPANS:
        for key, ledger, rollup in _rollups_off(granularity, window):
            n_found += 1
            if n_found > window.limit:
                return
            rows = UsageRecord.objects.filter(rows_of(key), state=_SETTLED).order_by("-id")
            differs = ", ".join(
                f"{name} {rollup.get(name, 0)} for {ledger.get(name, 0)}"
                for name in _SUMS
                if rollup.get(name, 0) != ledger.get(name, 0)
            )
            yield Finding(
                kind=FindingKind.ROLLUP,
                said=f"{granularity} {_at(key.period_start)}, tenant {key.tenant_id}, token "
                f"{key.api_token_id}, {key.route_name}: {differs}.",
                request_ids=tuple(rows.values_list("request_id", flat=True)[:_N_NAMED]),
                subject=key,
            )


CHECKS: Final[tuple[Check, ...]] = (
    unsettled,
    miscounted,
    meters,
    not_rolled_up,
    rollups,
    journal_checks.unjournaled,
    journal_checks.unledgered,
    journal_checks.counted_otherwise,
    journal_checks.late,
)


_registered: dict[str, Check] = {}


def check_register(check: Check) -> None:
    """Called by a room's ``ready``; the same again changes nothing."""
    _registered[check.__name__] = check


def findings(window: Window) -> list[Finding]:
    """Return what every check finds, up to ``window.limit`` of each."""
    checks = (*CHECKS, *_registered.values())
    return [finding for check in checks for finding in check(window)]


def _rollups_off(
    granularity: str, window: Window
) -> Iterator[tuple[RollupKey, dict[str, int], dict[str, int]]]:
    """Yield what differs: its key, the ledger's sums and the roll-up's; empty where it has none."""
    sides: dict[RollupKey, tuple[dict[str, int], dict[str, int]]] = {}
    for side, start, tenant_id, token_id, route_name, version_id, *sums in _both(
        granularity, window
    ):
        key = RollupKey(
            granularity=granularity,
            period_start=start,
            tenant_id=tenant_id,
            api_token_id=token_id,
            route_name=route_name,
            model_version_id=version_id,
        )
        sides.setdefault(key, ({}, {}))[side].update(zip(_SUMS, map(int, sums), strict=True))
    for key, (ledger, rollup) in sides.items():
        if ledger != rollup:
            yield key, ledger, rollup


def _both(granularity: str, window: Window) -> QuerySet[Any, tuple[Any, ...]]:
    """The sums of the rows that are marked as rolled up, and the roll-ups, of one moment."""
    names = ("side", *_KEY, *(f"sum_{name}" for name in _SUMS))
    ledger = (
        UsageRecord.objects.filter(is_rolled_up=True, created_at__gte=window.since)
        .order_by()
        .values(
            side=Value(0),
            start=Trunc("created_at", granularity, tzinfo=UTC),
            tenant=F("tenant_id"),
            token=Coalesce("api_token_id", Value(0)),
            route=F("route_name"),
            version=F("model_version_id"),
        )
        .annotate(
            sum_n_requests=Count("pk"),
            sum_n_failed=Count("pk", filter=Q(outcome__in=FAILURES)),
            **{f"sum_{name}": Sum(name) for name in _SUMS[2:]},
        )
    )
    stored = (
        UsageRollup.objects.filter(granularity=granularity, period_start__gte=window.since)
        .order_by()
        .annotate(
            side=Value(1),
            start=F("period_start"),
            token=F("api_token_id"),
            route=F("route_name"),
            version=F("model_version_id"),
            **{f"sum_{name}": F(name) for name in _SUMS},
        )
    )
    stored_names = ["tenant_id" if name == "tenant" else name for name in names]
    return ledger.values_list(*names).union(stored.values_list(*stored_names), all=True)


def _meter_said(meter: MeterSums) -> str:
    parts = []
    if meter.is_held_off:
        parts.append(f"holds {meter.n_held}, and open requests {meter.n_held_in_ledger}")
    if meter.is_used_off:
        parts.append(f"has used {meter.n_used}, and settled requests {meter.n_used_in_ledger}")
    return "; ".join(parts)


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
