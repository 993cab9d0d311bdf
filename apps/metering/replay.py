"""What other limits would have done to requests of the past: one walk over a tenant's rows, in the
order in which they came. It reads no database, and knows of each request what the ledger knows.

Admission asks in the same order: models, the minute, the context, then budgets and open requests
at once. What is refused here holds and uses nothing afterwards.
"""

import heapq
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Final

from apps.core.limits import LIMIT_NAMES, Limits
from apps.metering.budgets import seconds_left
from apps.metering.types import UNHURRIED_DOORS

_MINUTE_S: Final = 60
_SOON_S: Final = 1.0  # as budgets have it


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRequest:
    """n_reserved_tokens: what it was granted. ended_at: None while it runs."""

    at: datetime
    ended_at: datetime | None
    door: str
    route_name: str
    n_prompt_tokens: int
    n_reserved_tokens: int
    n_charged_tokens: int

    @property
    def is_hurried(self) -> bool:
        """It takes a place in the minute and among the open requests."""
        return self.door not in UNHURRIED_DOORS

    @property
    def n_least_tokens(self) -> int:
        """The prompt and one token of an answer, where an answer has tokens."""
        return min(self.n_prompt_tokens + 1, self.n_reserved_tokens)

    @property
    def periods(self) -> Mapping[str, str]:
        """The day and the month that it is charged to, by the name of their limit."""
        return _periods(self.at.date())


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """By one limit, as ``core.limits`` names it: how often, and when first."""

    limit: str
    n: int
    first_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """n_shortened: let in, but its answer would not have had room for all that it was. refused: in
    the order of ``LIMIT_NAMES``, those that refused nobody left out."""

    n_requests: int
    n_shortened: int
    refused: tuple[Refused, ...]

    @property
    def n_refused(self) -> int:
        return sum(each.n for each in self.refused)

    @property
    def first_at(self) -> datetime | None:
        return min((each.first_at for each in self.refused), default=None)


def replay(
    requests: Sequence[PastRequest],
    *,
    limits: Limits,
    key: str,
    used_before: Mapping[str, int] | None = None,
) -> Replayed:
    """Return what the limits of one scope would have done to its requests.

    key: the scope's, which says when its minutes begin. used_before: tokens by day and month, such
    as ``2026-11-26`` and ``2026-11``, that were used when the first request came.
    """
    minute, books = _Minute(limits.requests_per_minute, key=key), _Books(limits, used_before or {})
    found: dict[str, list[datetime]] = {}
    n_shortened = 0
    for request in sorted(requests, key=lambda each: each.at):
        books.settle_until(request.at)
        limit = _refused_at_the_door(request, limits=limits, minute=minute)
        limit = limit or books.refused_by(request)
        if limit is None:
            n_shortened += books.hold(request)
        else:
            found.setdefault(limit, []).append(request.at)
    return Replayed(
        n_requests=len(requests),
        n_shortened=n_shortened,
        refused=tuple(
            Refused(limit=name, n=len(found[name]), first_at=found[name][0])
            for name in LIMIT_NAMES
            if name in found
        ),
    )


def replays_sum(replays: Iterable[Replayed]) -> Replayed:
    """Return the same of several scopes together."""
    every = list(replays)
    parts = [part for each in every for part in each.refused]
    by_limit = {name: [part for part in parts if part.limit == name] for name in LIMIT_NAMES}
    return Replayed(
        n_requests=sum(each.n_requests for each in every),
        n_shortened=sum(each.n_shortened for each in every),
        refused=tuple(
            Refused(
                limit=name,
                n=sum(part.n for part in same),
                first_at=min(part.first_at for part in same),
            )
            for name, same in by_limit.items()
            if same
        ),
    )


def minute_of(moment: datetime, *, key: str) -> int:
    """Return which of a scope's minutes a moment is in: django-ratelimit lets those of each key
    begin at another second, and ends one with the second in which the next begins."""
    return -(-(int(moment.timestamp()) - zlib.crc32(key.encode()) % _MINUTE_S) // _MINUTE_S)


@lru_cache(maxsize=64)
def _periods(day: date) -> Mapping[str, str]:
    return {"tokens_per_day": f"{day:%Y-%m-%d}", "tokens_per_month": f"{day:%Y-%m}"}


def _refused_at_the_door(request: PastRequest, *, limits: Limits, minute: "_Minute") -> str | None:
    if limits.allowed_routes is not None and request.route_name not in limits.allowed_routes:
        return "allowed_routes"
    if request.is_hurried and not minute.has_room(request.at):
        return "requests_per_minute"
    cap = limits.max_context_tokens
    if cap is not None and request.n_least_tokens > cap:
        return "max_context_tokens"
    return None


class _Minute:
    """Counts as ``rates`` does: a refused one counts too."""

    def __init__(self, limit: int | None, *, key: str) -> None:
        self._limit, self._key = limit, key
        self._minute, self._n = 0, 0

    def has_room(self, moment: datetime) -> bool:
        if self._limit is None:
            return True
        minute = minute_of(moment, key=self._key)
        if minute != self._minute:
            self._minute, self._n = minute, 0
        self._n += 1
        return self._n <= self._limit


class _Books:
    """Budgets and open requests, moved as ``meters`` moves them."""

    def __init__(self, limits: Limits, used_before: Mapping[str, int]) -> None:
        self._cap = limits.max_concurrent_requests
        self._context = limits.max_context_tokens
        caps = {
            "tokens_per_day": limits.tokens_per_day,
            "tokens_per_month": limits.tokens_per_month,
        }
        self._caps = {name: cap for name, cap in caps.items() if cap is not None}
        self._used = dict(used_before)
        self._held: dict[str, int] = {}
        self._n_open = 0
        self._n_seen = 0  # no two endings compare their requests
        self._endings: list[tuple[datetime, int, PastRequest, int]] = []

    def settle_until(self, moment: datetime) -> None:
        """End what ended before a moment; what ends in it is still open then."""
        while self._endings and self._endings[0][0] < moment:
            _, _, request, n_held = heapq.heappop(self._endings)
            self._n_open -= request.is_hurried
            for period in request.periods.values():
                self._held[period] -= n_held
                n_used = min(request.n_charged_tokens, n_held)
                self._used[period] = self._used.get(period, 0) + n_used

    def refused_by(self, request: PastRequest) -> str | None:
        """Return the limit that will be wanting longest, as a client is told; None where there is
        room."""
        waits: dict[str, float] = {}
        for name, period in request.periods.items():
            if name in self._caps and self._room(name, period) < request.n_least_tokens:
                n_unused = self._caps[name] - self._used.get(period, 0)
                is_used_up = n_unused < request.n_least_tokens
                waits[name] = seconds_left(period, now=request.at) if is_used_up else _SOON_S
        if self._cap is not None and request.is_hurried and self._n_open >= self._cap:
            waits["max_concurrent_requests"] = _SOON_S
        return max(waits, key=lambda name: waits[name], default=None)

    def hold(self, request: PastRequest) -> bool:
        """Let one in; return whether its answer would have been cut."""
        rooms = [self._room(name, request.periods[name]) for name in self._caps]
        if self._context is not None:
            rooms.append(self._context)
        n_held = min([request.n_reserved_tokens, *rooms])
        for period in request.periods.values():
            self._held[period] = self._held.get(period, 0) + n_held
        self._n_open += request.is_hurried
        if request.ended_at is not None:
            self._n_seen += 1
            heapq.heappush(self._endings, (request.ended_at, self._n_seen, request, n_held))
        return request.n_charged_tokens > n_held

    def _room(self, name: str, period: str) -> int:
        return self._caps[name] - self._used.get(period, 0) - self._held.get(period, 0)
