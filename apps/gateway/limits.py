"""What limits a request before it has an engine: whose limits hold, whether they allow the model,
and whether there is room for it in the minute. What it may cost is the ledger's to say."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import Unavailable
from apps.core.gathering import Gathering, Spawn
from apps.core.hop import database_hop
from apps.core.limits import UNLIMITED, Limits
from apps.core.memory import Memory
from apps.metering.exceptions import LimitExceeded
from apps.metering.selectors import end_user_scope, scopes_of
from apps.metering.services import count_request, count_requests
from apps.metering.types import Budget, Scope
from apps.rbac.types import Principal
from apps.routing.exceptions import ModelNotFound
from apps.tenants.selectors import end_user_limits, has_end_users

P = ParamSpec("P")
R = TypeVar("R")

_cache_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
COUNTED_AT_MOST: Final = 100
_LOCAL_CACHE: Final = "django.core.cache.backends.locmem.LocMemCache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """scopes: whose limits hold. requests: what the tightest of them leaves of the minute."""

    scopes: tuple[Scope, ...]
    requests: Budget | None

    @property
    def max_context_tokens(self) -> int | None:
        """The least that a scope allows a request to be; None allows what the model can."""
        caps = [scope.limits.max_context_tokens for scope in self.scopes]
        return min((cap for cap in caps if cap is not None), default=None)


class LimitCheck:
    """Of one event loop. Subscribe ``forget`` to the stamp ``access``."""

    def __init__(self, *, spawn: Spawn) -> None:
        self._counts: Gathering[tuple[Scope, ...], Budget | None] = Gathering(
            _count, at_most=COUNTED_AT_MOST, spawn=spawn
        )
        self._end_users: Memory[tuple[int, str | None], Limits | None] = Memory()
        self.forget = self._end_users.forget

    async def admit(
        self,
        *,
        principal: Principal,
        model: str,
        route_name: str,
        end_user: str | None,
        is_counted: bool,
    ) -> Admitted:
        """Return whose limits hold for a request to ``model``.

        route_name: the own name of the route that it means, by which limits call it. is_counted: it
        takes a place in the minute.

        Raises:
            ModelNotFound: a scope does not allow it, which looks as if there were none.
            RateLimited: too many within the minute.
            Unavailable: the limits cannot be read, or the count cannot.
        """
        scopes = scopes_of(principal)
        if end_user is not None:
            scopes += await self._end_user_scopes(principal, end_user)
        for scope in scopes:
            if not scope.allows(route_name):
                raise ModelNotFound(model)
        requests = await self.count(scopes) if is_counted else None
        return Admitted(scopes=scopes, requests=requests)

    async def admit_without_model(self, principal: Principal) -> Budget | None:
        """Count a request that asks no model for anything; raises as ``admit`` does."""
        return await self.count(scopes_of(principal))

    async def count(self, scopes: tuple[Scope, ...]) -> Budget | None:
        """Count one request against every scope, off the event loop where the cache is elsewhere;
        as ``count_request`` raises."""
        if all(each.limits.requests_per_minute is None for each in scopes):
            return None
        cache = settings.CACHES[settings.RATELIMIT_USE_CACHE]
        if cache["BACKEND"] == _LOCAL_CACHE:  # a dictionary: a hop would cost more than the look
            return count_request(scopes)
        return await self._counts.ask(scopes)

    async def _end_user_scopes(self, principal: Principal, end_user: str) -> tuple[Scope, ...]:
        tenant_id = principal.tenant_id
        if await self._end_users.get((tenant_id, None), lambda: _any_limits(tenant_id)) is None:
            return ()
        limits = await self._end_users.get(
            (tenant_id, end_user), lambda: _limits_of(tenant_id, end_user)
        )
        if limits is None or limits == UNLIMITED:
            return ()
        return (end_user_scope(tenant_id=tenant_id, identifier=end_user, limits=limits),)


def is_allowed(principal: Principal, route_name: str) -> bool:
    """Return whether the tenant's and the key's limits allow a route."""
    return all(scope.allows(route_name) for scope in scopes_of(principal))


def rate_headers(*, requests: Budget | None, tokens: Budget | None) -> Mapping[str, str]:
    """Return what is left, in the headers that OpenAI's clients know."""
    headers = {}
    for name, budget in (("requests", requests), ("tokens", tokens)):
        if budget is not None:
            headers[f"X-RateLimit-Limit-{name}"] = str(budget.limit)
            headers[f"X-RateLimit-Remaining-{name}"] = str(budget.n_left)
            headers[f"X-RateLimit-Reset-{name}"] = duration(budget.resets_in_s)
    return headers


def error_headers(error: LimitExceeded) -> Mapping[str, str]:
    """Return the same of the limit that refused."""
    is_requests = error.type == "requests"
    return rate_headers(
        requests=error.budget if is_requests else None,
        tokens=None if is_requests else error.budget,
    )


def duration(seconds: float) -> str:
    """Return a time such as ``1h2m3s``, in whole seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "m"), (rest, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


async def _count(requests: Sequence[tuple[Scope, ...]]) -> Sequence[Budget | Exception | None]:
    """Count on a thread: what waits for the cache meanwhile is counted together next."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_cache_executor, count_requests, requests)


async def _any_limits(tenant_id: int) -> tuple[Limits | None, None]:
    return (UNLIMITED if await _read(has_end_users, tenant_id) else None), None


async def _limits_of(tenant_id: int, identifier: str) -> tuple[Limits | None, None]:
    return await _read(end_user_limits, tenant_id=tenant_id, identifier=identifier), None


async def _read(selector: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return await database_hop(selector, *args, **kwargs)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The limits cannot be read at the moment.") from error
