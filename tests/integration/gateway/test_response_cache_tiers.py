"""Kept answers: shared by processes, and forgotten by all of them."""

import re
import shlex
from typing import Any

import httpx
import pytest
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.deployments.types import ReplicaEndpoint
from apps.gateway.runtime import GatewayRuntime
from apps.rbac.models import ApiToken
from apps.routing.models import RouteTarget
from apps.routing.services import (
    person_responses_purge,
    tenant_responses_purge,
    version_responses_purge,
)
from apps.routing.types import person_digest, person_stamp, tenant_stamp, version_stamp
from tests.factories import ModelVersionFactory, RouteFactory, TenantFactory
from tests.factories.access import ApiTokenFactory
from tests.integration.console.pages import actions, staff
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.kept import NO_STORE, caching, empty_cache, http, told
from tests.processes import ROOT, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async

__all__ = ["caching", "empty_cache", "http"]

REDIS_URL = "redis://127.0.0.1:6379/13"


async def test_purges_reach_what_they_are_of_and_nothing_else(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    other = await database_hop(ApiTokenFactory)
    headers = {"Authorization": f"Bearer {other.secret}"}
    target = await database_hop(
        lambda: RouteTarget.objects.select_related("deployment__model_version").get(
            route__name=MODEL
        )
    )

    async def filled() -> None:
        assert (await told(http), await told(http, **headers)) == ("miss", "miss")
        assert len(runtime.responses) == 2

    await filled()
    await database_hop(tenant_responses_purge, tenant=token.tenant, actor=SYSTEM)

    async def is_one() -> bool:
        return len(runtime.responses) == 1

    await wait_until_async("the purge to be heard of", is_one, timeout_s=1)
    assert (await told(http), await told(http, **headers)) == ("miss", "hit")
    await database_hop(
        version_responses_purge, model_version=target.deployment.model_version, actor=SYSTEM
    )

    async def is_empty() -> bool:
        return (len(runtime.responses), runtime.responses.n_bytes) == (0, 0)

    await wait_until_async("the purge to be heard of", is_empty, timeout_s=1)
    await filled()
    purges = all_of(AuditEvent).filter(action="responses.purged")
    assert await database_hop(purges.count) == 2


async def test_a_purge_of_a_person_leaves_the_others(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    asked = {name: chat(f"I am {name}", user=name) for name in ("ann", "bob")}
    assert [await told(http, body) for body in asked.values()] == ["miss", "miss"]
    same = {**asked["ann"], "user": "bob"}
    assert await told(http, same) == "hit"  # nothing is kept for bob by that
    await database_hop(person_responses_purge, tenant=token.tenant, person="ann", actor=SYSTEM)

    async def is_one() -> bool:
        return len(runtime.responses) == 1

    await wait_until_async("the purge to be heard of", is_one, timeout_s=1)
    assert [await told(http, body) for body in asked.values()] == ["miss", "hit"]
    event = await database_hop(lambda: all_of(AuditEvent).get(action="responses.purged"))
    assert event.tenant_id == token.tenant_id
    assert "ann" not in f"{event.changes}{event.object_label}"


@pytest.mark.parametrize("whose", ["tenant", "person"])
async def test_a_purge_reaches_the_prefix_caches_of_the_engines(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime, whose: str
) -> None:
    async def n_cached(name: str) -> int:
        body = chat(f"{name} tells a long story. " * 20, user=name, max_tokens=1)
        answer = await http.post("/v1/chat/completions", json=body, headers=NO_STORE)
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [await n_cached(name) for name in ("ann", "bob")] == [0, 0]
    warm = [await n_cached(name) for name in ("ann", "bob")]
    assert min(warm) > 0
    if whose == "tenant":
        await database_hop(tenant_responses_purge, tenant=token.tenant, actor=SYSTEM)
    else:
        await database_hop(person_responses_purge, tenant=token.tenant, person="ann", actor=SYSTEM)
    purged: list[str] = []
    client = await runtime.engines.client(next(iter(endpoints(runtime))))
    purge = client.purge

    async def noted(tag: str, *, timeout_s: float) -> int:
        n_blocks = await purge(tag, timeout_s=timeout_s)
        purged.append(tag)
        return n_blocks

    client.purge = noted  # type: ignore[method-assign]
    await wait_until_async("the engine to be purged", lambda: bool(purged), timeout_s=2)
    after = [await n_cached(name) for name in ("ann", "bob")]
    assert after == ([0, 0] if whose == "tenant" else [0, warm[1]])


def endpoints(runtime: GatewayRuntime) -> set[ReplicaEndpoint]:
    return {each for group in runtime.table.snapshot.endpoints.values() for each in group}


@pytest.fixture
def redis_cache(settings: Any) -> Any:
    redis = pytest.importorskip("redis")
    client = redis.Redis.from_url(REDIS_URL, socket_connect_timeout=1)
    try:
        client.ping()
    except redis.exceptions.ConnectionError:
        pytest.skip("no Redis answers")
    settings.CACHES = {
        **settings.CACHES,
        "responses": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": REDIS_URL,
            "OPTIONS": {"serializer": "apps.core.caches.BytesSerializer"},
        },
    }
    caches["responses"].clear()
    return client


async def test_processes_share_by_redis_without_pickles(
    redis_cache: Any, http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    assert await told(http) == "miss"

    async def is_there() -> bool:
        return len(redis_cache.keys("*")) == 1

    await wait_until_async("the answer to be shared", is_there)
    [name] = redis_cache.keys("*")
    assert 3590 < redis_cache.ttl(name) <= 3600
    assert redis_cache.get(name)[32:33] == b"\x94"  # of msgpack: an array of four

    def forget() -> None:
        for key in list(runtime.responses._entries):
            runtime.responses._drop(key)

    forget()  # as another process, which has never had it
    assert await told(http) == "hit"
    assert len(runtime.responses) == 1
    redis_cache.set(name, b"\x80\x04" + b" no answer" * 5)
    forget()
    assert await told(http) == "miss"
    await database_hop(tenant_responses_purge, tenant=token.tenant, actor=SYSTEM)

    async def is_empty() -> bool:
        return len(runtime.responses) == 0

    await wait_until_async("the purge to be heard of", is_empty, timeout_s=1)
    assert await told(http) == "miss"


async def test_a_redis_that_is_away_costs_a_run(
    http: httpx.AsyncClient, runtime: GatewayRuntime, settings: Any
) -> None:
    settings.CACHES = {
        **settings.CACHES,
        "responses": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": "redis://127.0.0.1:1/0",
        },
    }
    runtime.responses._is_shared = True
    assert [await told(http) for _ in range(2)] == ["miss", "hit"]


def shown(language: str) -> str:
    """Return the page's one example of a language."""
    page = (ROOT / "docs" / "response-cache.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_commands_that_are_shown(transactional_db: None) -> None:
    tenant = TenantFactory(slug="acme")
    version = ModelVersionFactory(model__name="my-model", version=1)
    for line in shown("bash").splitlines():
        call_command(*shlex.split(line.removeprefix(".venv/bin/python manage.py ")))
    events = all_of(AuditEvent).filter(action="responses.purged")
    assert [event.object_id for event in events.order_by("id")] == [
        str(tenant.pk), str(tenant.pk), str(version.pk),
    ]  # fmt: skip
    stamps = change_stamps()
    person = person_stamp(tenant.pk, person_digest("user-17", cache_salt=tenant.cache_salt))
    for name in (tenant_stamp(tenant.pk), person, version_stamp(version.pk)):
        assert stamps[name] == 1
    assert stamps["responses"] == 3
    for wrong in (
        [], ["--tenant", "nobody"], ["--model", "my-model"], ["--model", "none", "--number", "1"],
        ["--tenant", "acme", "--model", "my-model"],
        ["--model", "my-model", "--number", "1", "--person", "user-17"],
    ):  # fmt: skip
        with pytest.raises(CommandError):
            call_command("purge_cache", *wrong)
    assert (events.count(), change_stamps()) == (3, stamps)


def test_the_example_that_is_shown(
    caching: None, server: ServerRun, token: ApiToken, capsys: pytest.CaptureFixture[str]
) -> None:
    example = shown("python").replace("http://127.0.0.1:8000", server.base_url)
    example = example.replace("sk-nano-…", token.secret)  # type: ignore[attr-defined]
    exec(example.replace("smollm2-135m-instruct", MODEL), {})
    said = re.findall(r"^# (\w+)$", shown("python"), re.MULTILINE)
    assert capsys.readouterr().out.split() == said == ["miss", "hit", "miss", "hit", "None"]


def test_whoever_may_change_routes_purges_in_the_admin(transactional_db: None) -> None:
    route = RouteFactory()
    version_id = route.deployment.model_version_id
    page = reverse("admin:routing_route_changelist")
    asked = {"action": "purge_selected", "_selected_action": [route.pk]}
    reader = staff("view_route")
    reader.post(page, asked)
    assert version_stamp(version_id) not in change_stamps()
    assert actions() == []
    staff("view_route", "change_route").post(page, asked)
    assert change_stamps()[version_stamp(version_id)] == 1
    assert actions() == ["responses.purged"]
    remote = RouteFactory(deployment__elsewhere=True)
    asked = {"action": "purge_selected", "_selected_action": [remote.pk]}
    staff("view_route", "change_route").post(page, asked)
    assert change_stamps()[version_stamp(0)] == 1
    assert actions() == ["responses.purged"] * 2
