"""Limits that nobody saved yet, tried on what the ledger knows of the last week. It reads, by index
and no more rows than it says, and stops at a deadline; what it left out is in its answer."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from apps.core.limits import Limits
from apps.metering.models import Meter, UsageRecord
from apps.metering.replay import PastRequest, Replayed, replay, replays_sum

DAYS: Final = 7
ROWS_AT_MOST: Final = 50_000
DEADLINE_S: Final = 8.0
_ROWS_AT_A_TIME: Final = 2_000
_COLUMNS: Final = (
    "id", "created_at", "settled_at", "door", "route_name", "n_prompt_tokens", "n_reserved_tokens",
    "n_charged_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSubject:
    """A tenant, what would hold for it, and what holds for it now."""

    tenant_id: int
    name: str
    proposed: Limits
    current: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTrial:
    """read_since: from when on its requests were looked at; later than the trial's own where there
    were too many."""

    tenant_id: int
    name: str
    proposed: Replayed
    current: Replayed
    read_since: datetime
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsTrial:
    """not_reached: names of the tenants for which there was no time."""

    since: datetime
    until: datetime
    tenants: tuple[TenantTrial, ...]
    not_reached: tuple[str, ...]

    @property
    def proposed(self) -> Replayed:
        return replays_sum(each.proposed for each in self.tenants)

    @property
    def current(self) -> Replayed:
        return replays_sum(each.current for each in self.tenants)

    @property
    def is_cut(self) -> bool:
        return bool(self.not_reached) or any(each.is_cut for each in self.tenants)


def limits_trial(
    subjects: Sequence[TrialSubject],
    *,
    now: datetime,
    rows_at_most: int = ROWS_AT_MOST,
    deadline_s: float = DEADLINE_S,
    clock: Callable[[], float] = time.monotonic,
) -> LimitsTrial:
    """Replay the last week under the proposed limits and, beside that, under those of now.

    Each tenant may have an equal share of the rows that are left; of those with more, the newest
    are looked at.
    """
    since, stop_at_s = now - timedelta(days=DAYS), clock() + deadline_s
    found: list[TenantTrial] = []
    n_left = rows_at_most
    for n_done, subject in enumerate(subjects):
        if clock() >= stop_at_s:
            break
        share = n_left // (len(subjects) - n_done)
        rows, is_cut = _requests(
            subject.tenant_id, since=since, limit=share, is_late=lambda: clock() >= stop_at_s
        )
        n_left -= len(rows)
        found.append(_tenant_trial(subject, rows=rows, is_cut=is_cut, since=since))
    return LimitsTrial(
        since=since,
        until=now,
        tenants=tuple(sorted(found, key=lambda each: (-each.proposed.n_refused, each.name))),
        not_reached=tuple(subject.name for subject in subjects[len(found) :]),
    )


def _tenant_trial(
    subject: TrialSubject, *, rows: list[PastRequest], is_cut: bool, since: datetime
) -> TenantTrial:
    key = f"tenant:{subject.tenant_id}"
    before = _used_before(key, rows=rows)
    return TenantTrial(
        tenant_id=subject.tenant_id,
        name=subject.name,
        proposed=replay(rows, limits=subject.proposed, key=key, used_before=before),
        current=replay(rows, limits=subject.current, key=key, used_before=before),
        read_since=min((row.at for row in rows), default=since) if is_cut else since,
        is_cut=is_cut,
    )


def _requests(
    tenant_id: int, *, since: datetime, limit: int, is_late: Callable[[], bool]
) -> tuple[list[PastRequest], bool]:
    """Return the newest requests since a moment, as they came, and whether there may be more."""
    found: list[PastRequest] = []
    for row in _newest(tenant_id, since=since, is_late=is_late):
        if row is None or len(found) == limit:
            return found[::-1], True
        found.append(row)
    return found[::-1], False


def _newest(
    tenant_id: int, *, since: datetime, is_late: Callable[[], bool]
) -> Iterator[PastRequest | None]:
    """Yield a tenant's requests, newest first, in the order of its index; None when time is over.

    They were written in the order of their ids, but for those of one moment.
    """
    last: int | None = None
    while True:
        rows = UsageRecord.objects.filter(tenant_id=tenant_id)
        if last is not None:
            rows = rows.filter(id__lt=last)
        part = list(rows.order_by("-id").values_list(*_COLUMNS)[:_ROWS_AT_A_TIME])
        for pk, at, ended_at, door, route_name, n_prompt, n_reserved, n_charged in part:
            last = pk
            if at >= since:
                yield PastRequest(
                    at=at,
                    ended_at=ended_at,
                    door=door,
                    route_name=route_name,
                    n_prompt_tokens=n_prompt,
                    n_reserved_tokens=n_reserved,
                    n_charged_tokens=n_charged,
                )
        if len(part) < _ROWS_AT_A_TIME or part[-1][1] < since:
            return
        if is_late():
            yield None


def _used_before(key: str, *, rows: Sequence[PastRequest]) -> dict[str, int]:
    """Return what the tenant's meters had used when the first of the rows came: all that they say
    less what the rows were charged. A meter that is pruned says nothing."""
    charged: dict[str, int] = {}
    for row in rows:
        for period in row.periods.values():
            charged[period] = charged.get(period, 0) + row.n_charged_tokens
    meters = Meter.objects.filter(scope=key, period__in=charged).values_list("period", "n_used")
    return {period: max(0, n_used - charged[period]) for period, n_used in meters}
