"""Requests per minute: exact in one cache, over all scopes, and refused when it cannot be asked."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from apps.core.exceptions import Unavailable
from apps.core.limits import Limits
from apps.metering.exceptions import RateLimited
from apps.metering.services import count_request, count_requests
from apps.metering.types import Scope

REDIS_URL = "redis://127.0.0.1:6379/14"


def scope(limit: int | None, key: str = "tenant:1") -> Scope:
    return Scope(
        key=f"{key}:{os.getpid()}", said="This key", limits=Limits(requests_per_minute=limit)
    )


@pytest.fixture(autouse=True, params=["memory", "redis"])
def cache(request: pytest.FixtureRequest, settings: pytest.FixtureRequest) -> None:
    if request.param == "redis":
        redis = pytest.importorskip("redis")
        try:
            redis.Redis.from_url(REDIS_URL, socket_connect_timeout=1).ping()
        except redis.exceptions.ConnectionError:
            pytest.skip("no Redis answers")
        settings.CACHES = {  # type: ignore[attr-defined]
            "default": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": REDIS_URL,
            }
        }
    caches["default"].clear()


def test_no_limit_counts_nothing() -> None:
    assert count_request([scope(None)]) is None


def test_a_minute_has_so_many_and_no_more() -> None:
    mine = scope(3)
    found = [count_request([mine]) for _ in range(3)]
    assert [budget.n_left for budget in found if budget is not None] == [2, 1, 0]
    with pytest.raises(RateLimited, match="This key may make 3 requests a minute") as refusal:
        count_request([mine])
    error = refusal.value
    assert error.budget is not None
    assert (error.status, error.budget.limit, error.budget.n_left) == (429, 3, 0)
    assert error.retry_after_s is not None and 1 <= error.retry_after_s <= 60


def test_the_tightest_scope_speaks() -> None:
    budget = count_request([scope(100), scope(5, "key:1")])
    assert budget is not None
    assert (budget.limit, budget.n_left) == (5, 4)


def test_scopes_do_not_count_for_each_other() -> None:
    count_request([scope(1)])
    assert count_request([scope(1, "tenant:2")]) is not None


def test_sixty_at_once_get_as_many_places_as_there_are() -> None:
    mine = scope(20)

    def one(_: int) -> bool:
        try:
            count_request([mine])
        except RateLimited:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(60))) == 20


def test_counted_together_is_counted_one_after_another() -> None:
    tenant, key, other = scope(7), scope(4, "key:1"), scope(2, "tenant:2")
    requests = [(tenant, key), (other,), (tenant,), (scope(None, "tenant:3"),), (tenant, key)] * 3
    together = count_requests(requests) + count_requests(requests[:1])
    caches["default"].clear()
    alone = []
    for scopes in [*requests, requests[0]]:
        alone += count_requests([scopes])

    def said(counted: object) -> object:
        if isinstance(counted, RateLimited):
            return str(counted), counted.budget and counted.budget.limit
        return counted and (counted.limit, counted.n_left)  # type: ignore[attr-defined]

    # Alone, a request's scopes count before the next one's; together, each scope of all of them.
    assert list(map(said, together)) == list(map(said, alone))
    assert sum(isinstance(each, RateLimited) for each in together) == 5


def test_the_last_second_of_a_minute_is_not_taken_for_a_cache_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library counts the seconds left after it has counted, when none may be."""
    times = itertools.chain([120], itertools.repeat(121))
    monkeypatch.setattr("django_ratelimit.core.time.time", lambda: next(times))
    monkeypatch.setattr("django_ratelimit.core.zlib.crc32", lambda _: 0)
    budget = count_request([scope(3)])
    assert budget is not None
    assert (budget.n_left, budget.resets_in_s) == (2, 1.0)


def test_a_cache_that_is_away_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(type(caches["default"]), "add", broken)
    with pytest.raises(Unavailable) as refusal:
        count_request([scope(3)])
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1.0)


def test_a_counter_that_was_thrown_away_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(caches["default"], LocMemCache):
        pytest.skip("Redis makes it anew")

    def gone(*_: object, **__: object) -> int:
        raise ValueError

    mine = scope(3)
    count_request([mine])
    monkeypatch.setattr(LocMemCache, "incr", gone)
    with pytest.raises(Unavailable):
        count_request([mine])
