"""Requests per minute, counted by django-ratelimit in the cache that all processes share."""

from collections.abc import Sequence
from typing import Any, Final

from django_ratelimit.core import get_usage

from apps.core.exceptions import Unavailable
from apps.metering.exceptions import RateLimited
from apps.metering.types import Budget, Scope

_GROUP: Final = "requests"


def count_request(scopes: Sequence[Scope]) -> Budget | None:
    """Count one request against every scope; return what the tightest has left, None where none
    has a limit. A refused one counts too. It may block for as long as the cache does.

    Raises:
        RateLimited: a scope has made as many within its minute as it may.
        Unavailable: the cache cannot be asked.
    """
    tightest: Budget | None = None
    for scope in scopes:
        limit = scope.limits.requests_per_minute
        if limit is None:
            continue
        usage = _usage(scope, limit=limit)
        budget = Budget(
            limit=limit,
            n_left=max(0, limit - usage["count"]),
            resets_in_s=max(1.0, float(usage["time_left"])),
        )
        if usage["should_limit"]:
            raise RateLimited(
                f"{scope.said} may make {limit} requests a minute.",
                retry_after_s=budget.resets_in_s,
                budget=budget,
            )
        if tightest is None or budget.n_left < tightest.n_left:
            tightest = budget
    return tightest


def _usage(scope: Scope, *, limit: int) -> dict[str, Any]:
    try:
        usage = get_usage(
            None, group=_GROUP, key=lambda *_: scope.key, rate=f"{limit}/m", increment=True
        )
    except Exception as error:  # of whichever cache it is
        raise _away() from error
    if usage is None or usage["time_left"] < 0:  # how the library says that its cache is away
        raise _away()
    return dict(usage)


def _away() -> Unavailable:
    return Unavailable("The rate limits cannot be checked at the moment.")
