"""Requests per minute, counted by django-ratelimit in the cache that all processes share."""

import time
from collections.abc import Sequence
from typing import Any, Final

from django.conf import settings
from django.core.cache import caches
from django_ratelimit.core import EXPIRATION_FUDGE, _get_window, _make_cache_key, get_usage

from apps.core.exceptions import Unavailable
from apps.metering.exceptions import RateLimited
from apps.metering.types import Budget, Scope

_GROUP: Final = "requests"
_PERIOD_S: Final = 60

Counted = Budget | RateLimited | None


def count_request(scopes: Sequence[Scope]) -> Budget | None:
    """Count one request against every scope; return what the tightest has left, None where none
    has a limit. A refused one counts too. It may block for as long as the cache does.

    Raises:
        RateLimited: a scope has made as many within its minute as it may.
        Unavailable: the cache cannot be asked.
    """
    (counted,) = count_requests([scopes])
    if isinstance(counted, RateLimited):
        raise counted
    return counted


def count_requests(requests: Sequence[Sequence[Scope]]) -> list[Counted]:
    """Count many, each with its scopes, as if one came after the other; return what
    ``count_request`` returns to each, or the refusal that it raises.

    Raises:
        Unavailable: the cache cannot be asked.
    """
    found: list[Counted] = [None] * len(requests)
    for depth in range(max(map(len, requests), default=0)):
        by_scope: dict[Scope, list[int]] = {}
        for index, scopes in enumerate(requests):
            # A request that one scope has refused is not counted by those after it.
            if depth < len(scopes) and not isinstance(found[index], RateLimited):
                by_scope.setdefault(scopes[depth], []).append(index)
        for scope, indices in by_scope.items():
            if scope.limits.requests_per_minute is None:
                continue
            for index, counted in zip(indices, _count(scope, n=len(indices)), strict=True):
                found[index] = _tighter(found[index], counted)
    return found


def _tighter(before: Counted, counted: Budget | RateLimited) -> Counted:
    if isinstance(before, Budget) and isinstance(counted, Budget):
        return min(before, counted, key=lambda budget: budget.n_left)
    return counted


def _count(scope: Scope, *, n: int) -> list[Budget | RateLimited]:
    """Count ``n`` requests of one scope."""
    limit = scope.limits.requests_per_minute
    assert limit is not None
    n_counted, seconds_left = _usage(scope, limit=limit, n=n)
    resets_in_s = max(1.0, float(seconds_left))
    answers: list[Budget | RateLimited] = []
    for count in range(n_counted - n + 1, n_counted + 1):
        budget = Budget(limit=limit, n_left=max(0, limit - count), resets_in_s=resets_in_s)
        if count <= limit:
            answers.append(budget)
            continue
        said = f"{scope.said} may make {limit} requests a minute."
        answers.append(RateLimited(said, retry_after_s=resets_in_s, budget=budget))
    return answers


def _usage(scope: Scope, *, limit: int, n: int) -> tuple[int, int]:
    """Return how many were counted within the minute, these ``n`` included, and how many seconds
    are left of it."""
    rate = f"{limit}/m"
    try:
        if n > 1:
            return _count_together(scope.key, rate=rate, n=n)
        usage = get_usage(None, group=_GROUP, key=lambda *_: scope.key, rate=rate, increment=True)
    except Exception as error:  # of whichever cache it is
        raise _away() from error
    # A limit of 0, which nobody can set, is how the library says that its cache is away.
    if usage is None or usage["limit"] == 0:
        raise _away()
    return usage["count"], usage["time_left"]


def _count_together(key: str, *, rate: str, n: int) -> tuple[int, int]:
    """Move the counter that the library's ``get_usage`` moves, by more than the one that it
    knows."""
    window = _get_window(key, _PERIOD_S)
    counter = _make_cache_key(_GROUP, window, rate, key, get_usage.ALL)
    cache: Any = caches[settings.RATELIMIT_USE_CACHE]
    is_new = cache.add(counter, n, _PERIOD_S + EXPIRATION_FUDGE)
    return n if is_new else cache.incr(counter, n), window - int(time.time())


def _away() -> Unavailable:
    return Unavailable("The rate limits cannot be checked at the moment.")
