"""Sums of the ledger by hour and by day, each request in them once.

A row says itself whether its numbers are in the sums: they go in and the row is marked in one
transaction. So nothing is lost and nothing counted twice by a crash at any point, by two runs at a
time, or by a row that is settled late; and there is no clock or order of commits to trust, as a
watermark would have to. A request counts in the hour in which it came, as in its budgets.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Final

from django.db import transaction
from django.db.models import Q

from apps.metering.histograms import added, bucket_of
from apps.metering.models import UsageRecord, UsageRollup

FAILURES: Final = (UsageRecord.Outcome.FAILED, UsageRecord.Outcome.INTERRUPTED)
SPANS: Final = {
    UsageRollup.Granularity.HOUR.value: timedelta(hours=1),
    UsageRollup.Granularity.DAY.value: timedelta(days=1),
}
SUMS: Final = (
    "n_requests", "n_failed", "n_prompt_tokens", "n_cached_tokens", "n_completion_tokens",
    "cost_micro", "ttft_us_sum", "total_us_sum",
)  # fmt: skip
_BUCKETS: Final = ("ttft_buckets", "total_buckets")


_UNIQUE: Final = (
    "granularity", "period_start", "tenant", "api_token_id", "route_name", "model_version_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class RollupKey:
    """What a roll-up is about. api_token_id: 0 without a token."""

    granularity: str
    period_start: datetime
    tenant_id: int
    api_token_id: int
    route_name: str
    model_version_id: int

    @classmethod
    def of(cls, rollup: UsageRollup) -> "RollupKey":
        return cls(**{each.name: getattr(rollup, each.name) for each in fields(cls)})

    @property
    def period_end(self) -> datetime:
        return self.period_start + SPANS[self.granularity]


def period_start(moment: datetime, *, granularity: str) -> datetime:
    """Return when the hour or the day of UTC began that a moment is in."""
    hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return hour.replace(hour=0) if granularity == UsageRollup.Granularity.DAY else hour


@transaction.atomic
def rows_add(*, limit: int) -> int:
    """Add the oldest settled rows that are in no roll-up yet; return how many those were.

    Rows are locked, then roll-ups, each in a fixed order: runs at a time wait for each other and
    cannot deadlock.
    """
    waiting = UsageRecord.objects.filter(state=UsageRecord.State.SETTLED, is_rolled_up=False)
    rows = list(waiting.order_by("id").select_for_update()[:limit])
    if rows:
        sums = _summed(rows)
        for stored in _locked(sums):
            _merge(sums[RollupKey.of(stored)], stored)
        UsageRollup.objects.bulk_create(
            sums.values(),
            update_conflicts=True,
            unique_fields=_UNIQUE,
            update_fields=[*SUMS, *_BUCKETS],
        )
        UsageRecord.objects.filter(pk__in=[row.pk for row in rows]).update(is_rolled_up=True)
    return len(rows)


@transaction.atomic
def rebuild(key: RollupKey) -> None:
    """Make one roll-up again of the rows that are marked as being in it."""
    (stored,) = _locked([key])
    rows = UsageRecord.objects.filter(rows_of(key), is_rolled_up=True)
    found = _summed(rows.iterator(chunk_size=1_000), granularities=(key.granularity,)).get(key)
    if found is None:
        stored.delete()
        return
    found.pk = stored.pk
    found.save()


def rows_of(key: RollupKey) -> Q:
    """Return what the rows of a roll-up have in common."""
    return Q(
        created_at__gte=key.period_start,
        created_at__lt=key.period_end,
        tenant_id=key.tenant_id,
        api_token_id=key.api_token_id or None,
        route_name=key.route_name,
        model_version_id=key.model_version_id,
    )


def _locked(keys: Iterable[RollupKey]) -> list[UsageRollup]:
    """Return the stored roll-ups of these keys, made where they were not there."""
    wanted = set(keys)
    UsageRollup.objects.bulk_create(
        [UsageRollup(**asdict(key)) for key in sorted(wanted)], ignore_conflicts=True
    )
    near = UsageRollup.objects.filter(
        granularity__in={key.granularity for key in wanted},
        period_start__in={key.period_start for key in wanted},
        tenant_id__in={key.tenant_id for key in wanted},
        route_name__in={key.route_name for key in wanted},
    )
    rollups = near.order_by("id").select_for_update()
    return [rollup for rollup in rollups if RollupKey.of(rollup) in wanted]


def _summed(
    rows: Iterable[UsageRecord], *, granularities: Iterable[str] = tuple(SPANS)
) -> dict[RollupKey, UsageRollup]:
    sums: dict[RollupKey, UsageRollup] = {}
    for row in rows:
        for key in keys_of(row, granularities):
            if key not in sums:
                sums[key] = UsageRollup(**asdict(key))
            _add(sums[key], row)
    return sums


def keys_of(row: UsageRecord, granularities: Iterable[str] = tuple(SPANS)) -> Iterator[RollupKey]:
    """Yield the roll-ups that a row belongs to."""
    for granularity in granularities:
        yield RollupKey(
            granularity=granularity,
            period_start=period_start(row.created_at, granularity=granularity),
            tenant_id=row.tenant_id,
            api_token_id=row.api_token_id or 0,
            route_name=row.route_name,
            model_version_id=row.model_version_id,
        )


def _add(rollup: UsageRollup, row: UsageRecord) -> None:
    rollup.n_requests += 1
    rollup.n_failed += row.outcome in FAILURES
    rollup.n_prompt_tokens += row.n_prompt_tokens
    rollup.n_cached_tokens += row.n_cached_tokens
    rollup.n_completion_tokens += row.n_completion_tokens
    rollup.cost_micro += row.cost_micro
    if row.ttft_ms is not None:
        rollup.ttft_us_sum += round(row.ttft_ms * 1000)
        rollup.ttft_buckets[bucket_of(row.ttft_ms)] += 1
    if row.total_ms is not None:
        rollup.total_us_sum += round(row.total_ms * 1000)
        rollup.total_buckets[bucket_of(row.total_ms)] += 1


def _merge(rollup: UsageRollup, other: UsageRollup) -> None:
    for name in SUMS:
        setattr(rollup, name, getattr(rollup, name) + getattr(other, name))
    for name in _BUCKETS:
        setattr(rollup, name, added(getattr(rollup, name), getattr(other, name)))
