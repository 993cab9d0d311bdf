import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.types import Actor
from apps.core.exceptions import AuthenticationFailed
from apps.core.hop import database_hop
from apps.core.stamps import StampWatcher
from apps.rbac import authentication
from apps.rbac.authentication import TokenCache
from apps.rbac.models import ApiToken
from apps.rbac.selectors import TokenGrant
from apps.rbac.services import api_token_revoke
from tests.factories import ApiTokenFactory
from tests.rows import all_of
from tests.waiting import wait_until_async

pytestmark = pytest.mark.django_db(transaction=True)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every secret that the database was asked for."""
    asked: list[str] = []
    real: Callable[[str], TokenGrant] = authentication.grant_of_secret

    def counting(secret: str) -> TokenGrant:
        asked.append(secret)
        return real(secret)

    monkeypatch.setattr(authentication, "grant_of_secret", counting)
    return asked


async def _token(**fields: Any) -> Any:
    return await database_hop(lambda: ApiTokenFactory(**fields))


async def test_a_hit_asks_nothing_until_ten_seconds_have_gone(lookups: list[str]) -> None:
    token, clock = await _token(), Clock()
    cache = TokenCache(clock=clock)
    first = await cache.authenticate(token.secret)
    clock.now_s += 9.9
    assert await cache.authenticate(token.secret) == first
    assert len(lookups) == 1
    clock.now_s += 0.2
    assert await cache.authenticate(token.secret) == first
    assert len(lookups) == 2


async def test_an_entry_ends_with_its_token() -> None:
    token = await _token(expires_at=timezone.now() + timedelta(seconds=3))
    clock = Clock()
    cache = TokenCache(clock=clock)
    await cache.authenticate(token.secret)
    await database_hop(lambda: all_of(ApiToken).update(expires_at=timezone.now()))
    clock.now_s += 3.1
    with pytest.raises(AuthenticationFailed):
        await cache.authenticate(token.secret)


async def test_a_refusal_is_not_remembered(lookups: list[str]) -> None:
    cache = TokenCache()
    secret = "sk-nano-" + "z" * 43
    with pytest.raises(AuthenticationFailed):
        await cache.authenticate(secret)
    await _token(secret=secret)
    assert (await cache.authenticate(secret)).api_token_id is not None


async def test_the_oldest_entry_makes_room(lookups: list[str]) -> None:
    cache = TokenCache(size=2)
    tokens = [await _token() for _ in range(3)]
    for token in tokens:
        await cache.authenticate(token.secret)
    await cache.authenticate(tokens[1].secret)
    await cache.authenticate(tokens[2].secret)
    assert len(lookups) == 3
    await cache.authenticate(tokens[0].secret)
    assert len(lookups) == 4


async def test_a_look_up_that_began_before_a_change_is_not_remembered(
    lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await _token()
    cache = TokenCache()
    inner = authentication.grant_of_secret
    loop = asyncio.get_running_loop()

    def overtaken(secret: str) -> TokenGrant:
        grant = inner(secret)
        done = asyncio.run_coroutine_threadsafe(_forget(cache), loop)
        done.result(timeout=5)
        return grant

    monkeypatch.setattr(authentication, "grant_of_secret", overtaken)
    await cache.authenticate(token.secret)
    await cache.authenticate(token.secret)
    assert len(lookups) == 2


async def _forget(cache: TokenCache) -> None:
    cache.forget()


async def test_a_revoked_token_is_refused_after_one_poll(actor: Actor) -> None:
    token = await _token()
    cache, watcher = TokenCache(), StampWatcher(interval_s=0.05)
    watcher.subscribe("access", cache.forget)
    watcher.start()
    try:
        await cache.authenticate(token.secret)
        await database_hop(api_token_revoke, token=token, actor=actor)

        async def refused() -> bool:
            try:
                await cache.authenticate(token.secret)
            except AuthenticationFailed:
                return True
            return False

        await wait_until_async("the token to be refused", refused, timeout_s=2)
    finally:
        await watcher.stop()


async def test_the_first_use_is_noted() -> None:
    token = await _token()
    await TokenCache().authenticate(token.secret)
    assert (await database_hop(all_of(ApiToken).get)).last_used_at is not None
