"""A remote replica that refuses, breaks off, lies or is left: what clients see of it, and what the
ledger keeps. The server there is a real one, and does as a test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import pytest

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.deployments.models import Deployment, RemoteServer
from apps.deployments.services import remote_server_update
from apps.deployments.types import ReplicaEndpoint
from apps.gateway.runtime import GatewayRuntime, gateway_runtime
from apps.gateway.services import answer
from apps.metering.models import Meter, UsageRecord
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_secret
from apps.routing.models import Route
from apps.routing.services import remote_responses_purge
from config.asgi import application
from tests import remote
from tests.factories.access import ApiTokenFactory
from tests.factories.deployments import (
    DeploymentFactory,
    EngineProcessFactory,
    RemoteServerFactory,
    ReplicaFactory,
)
from tests.factories.routing import RouteFactory
from tests.remote import DONE, KEY, Upstream, of_body, piece, streamed, usage, whole
from tests.rows import all_of
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"
ROUTE = "far/model"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with remote.upstream() as run:
        yield run


@pytest.fixture
def token(transactional_db: None) -> ApiToken:
    return ApiTokenFactory()


@pytest.fixture
async def http(
    token: ApiToken, upstream: Upstream, settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    await database_hop(route_to, upstream)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {token.secret}", "X-Secret": "of the client"},
        timeout=30,
    ) as client:
        yield client
    await gateway_runtime().aclose()


def route_to(upstream: Upstream, **fields: Any) -> None:
    server = RemoteServerFactory(
        base_url=upstream.base_url, api_key=KEY, first_byte_timeout_s=3, idle_timeout_s=3
    )
    deployment = DeploymentFactory(
        name="far", elsewhere=True, remote=server, remote_model=remote.MODEL, **fields
    )
    process = EngineProcessFactory(ready=True, name="far-0", socket_path="", pid=None)
    ReplicaFactory(deployment=deployment, index=0, engine_process=process)
    RouteFactory(name=ROUTE, deployment=deployment)
    for stamp in ("routes", "replicas", "access"):
        change_stamp_bump(stamp)


def endpoint_of(runtime: GatewayRuntime) -> ReplicaEndpoint:
    [found] = [each for group in runtime.table.snapshot.endpoints.values() for each in group]
    return found


def body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": ROUTE, "messages": messages, "max_tokens": 50, **fields}


async def row_of() -> UsageRecord:
    return await database_hop(lambda: all_of(UsageRecord).get())


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (of_body(b"{}", status=429, headers={"Retry-After": "7"}), 503, "engine_overloaded"),
        (of_body(b"secret trace", status=500), 500, "engine_error"),
        (of_body(b'{"error":{"message":"wrong key"}}', status=401), 500, "engine_error"),
        (of_body(b"", status=302, headers={"Location": "/v2"}), 500, "engine_error"),
        (of_body(b"", status=502), 503, "engine_unavailable"),
        (of_body(b"<html>"), 500, "engine_error"),
    ],
)
async def test_errors_there_are_errors_of_an_engine_here(
    http: httpx.AsyncClient,
    upstream: Upstream,
    fault: remote.Answer,
    status: int,
    code: str,
    is_streamed: bool,
) -> None:
    upstream.answer = fault
    response = await http.post(CHAT, json=body(stream=is_streamed))
    if response.status_code == 200:  # known only once the body was read
        assert is_streamed
        assert f'"code":"{code}"' in response.text
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    said = response.text + str(response.headers)
    for secret in (KEY, str(upstream.port), remote.MODEL, "secret trace", "wrong key"):
        assert secret not in said
    if "Retry-After" in response.headers and code == "engine_overloaded":
        assert response.headers["Retry-After"] == "7"
    row = await row_of()
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", code)
    assert (row.n_charged_tokens, row.cost_micro) == (0, 0)


@pytest.mark.parametrize(
    "fault",
    [
        streamed(piece("Hel"), piece("lo"), cuts=True),
        streamed(piece("Hel"), piece("lo")),
        streamed(piece("Hel"), piece("lo"), 10.0),
    ],
    ids=["broken off", "half", "stuck"],
)
async def test_half_a_stream_ends_in_an_error_and_is_charged(
    http: httpx.AsyncClient, upstream: Upstream, fault: remote.Answer
) -> None:
    upstream.answer = fault
    response = await http.post(CHAT, json=body(stream=True))
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "engine_unavailable"
    row = await row_of()
    assert (row.outcome, row.error_code) == ("failed", "engine_unavailable")
    assert row.n_completion_tokens == 2
    assert row.n_charged_tokens == row.n_prompt_tokens + 2


async def test_usage_decides_what_is_charged(http: httpx.AsyncClient, upstream: Upstream) -> None:
    upstream.answer = streamed(piece("Hello", finish_reason="stop"), usage(11, 2), DONE)
    wanted = body(stream=True, stream_options={"include_usage": True})
    response = await http.post(CHAT, json=wanted)
    assert '"prompt_tokens":11,"completion_tokens":2,"total_tokens":13' in response.text
    row = await row_of()
    assert (row.n_prompt_tokens, row.n_completion_tokens, row.n_charged_tokens) == (11, 2, 13)
    assert row.n_reserved_tokens > 61
    [day, month] = await database_hop(lambda: list(all_of(Meter).order_by("-period")))
    assert {(meter.n_used, meter.n_held) for meter in (day, month)} == {(13, 0)}


async def test_a_liar_is_charged_no_more_than_was_reserved(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.answer = whole("Hello", prompt_tokens=10**12, completion_tokens=10**12)
    response = await http.post(CHAT, json=body())
    assert response.status_code == 200
    row = await row_of()
    assert row.n_charged_tokens == row.n_reserved_tokens


async def test_no_usage_is_charged_by_the_bound(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.answer = whole("Hello you there")
    await http.post(CHAT, json=body())
    row = await row_of()
    assert row.n_prompt_tokens == row.n_reserved_tokens - 50
    assert row.n_completion_tokens == 5  # of 15 bytes


async def test_a_client_that_leaves_is_charged_for_what_it_got(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.answer = streamed(piece("Hel"), piece("lo"), 0.9, piece("x"), 30.0)
    asking = asyncio.create_task(http.post(CHAT, json=body(stream=True)))
    await wait_until_async("the request to be there", lambda: _of(len(upstream.asked) == 1))
    await asyncio.sleep(0.3)
    asking.cancel()
    await wait_until_async("the server to be left", lambda: _of(upstream.n_left == 1), timeout_s=2)

    async def is_settled() -> bool:
        return (await row_of()).state == "settled"

    await wait_until_async("the row to be settled", is_settled)
    row = await row_of()
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")
    assert row.n_completion_tokens == 2
    assert row.n_charged_tokens == row.n_prompt_tokens + 2 <= row.n_reserved_tokens


async def test_a_budget_cuts_what_is_asked_for(
    http: httpx.AsyncClient, upstream: Upstream, token: ApiToken
) -> None:
    def limit(n_tokens: int) -> None:
        tenant = token.tenant
        tenant.tokens_per_day = n_tokens
        tenant.save()
        change_stamp_bump("access")

    upstream.answer = whole("Hello", prompt_tokens=20, completion_tokens=5)
    await database_hop(limit, 100)
    await http.post(CHAT, json=body())
    [asked] = upstream.asked
    assert asked["max_tokens"] == 100 - 89  # what the bound of the prompt leaves
    refused = await http.post(CHAT, json=body())
    assert (refused.status_code, len(upstream.asked)) == (429, 1)
    used = await database_hop(lambda: max(all_of(Meter).values_list("n_used", flat=True)))
    assert used == 25


async def test_nothing_of_the_client_goes_there(
    http: httpx.AsyncClient, upstream: Upstream, token: ApiToken
) -> None:
    upstream.answer = whole("Hello", prompt_tokens=2, completion_tokens=2)
    response = await http.post(CHAT, json=body(user="alice@example.com"))
    assert response.status_code == 200
    said = json.dumps([upstream.headers, upstream.asked])
    for secret in (token.secret, "of the client", "alice", ROUTE, "testserver"):
        assert secret not in said
    assert upstream.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_a_change_of_the_server_lets_what_runs_end(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    upstream.answer = streamed(
        piece("Hel"), 0.8, piece("lo", finish_reason="stop"), usage(3, 2), DONE
    )
    asking = asyncio.create_task(http.post(CHAT, json=body(stream=True)))
    await wait_until_async("the request to be there", lambda: _of(len(upstream.asked) == 1))
    runtime = gateway_runtime()
    before = await runtime.engines.client(endpoint_of(runtime))

    def change() -> None:
        RemoteServer.objects.update(max_concurrency=3)
        Deployment.objects.update(generation=2)
        change_stamp_bump("deployments")

    await database_hop(change)

    async def is_seen() -> bool:
        found = endpoint_of(runtime).remote
        return found is not None and found.max_concurrency == 3

    await wait_until_async("the change to be seen", is_seen)
    assert await runtime.engines.client(endpoint_of(runtime)) is not before
    response = await asking
    assert (
        "".join(
            choice["delta"].get("content") or ""
            for line in response.text.splitlines()
            if line.startswith("data: {")
            for choice in json.loads(line[6:])["choices"]
        )
        == "Hello"
    )
    await wait_until_async("the old session to be closed", lambda: _of(before.is_closed))
    assert (await row_of()).outcome == "completed"


async def test_embeddings_are_charged_by_usage(http: httpx.AsyncClient, upstream: Upstream) -> None:
    def embeds() -> None:
        Deployment.objects.update(remote_task="embed")
        change_stamp_bump("deployments")

    await database_hop(embeds)
    data = [{"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": [3, 4]}]
    upstream.answer = of_body(
        json.dumps({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()
    )
    asked = {"model": ROUTE, "input": ["Hello", "you"]}
    response = await http.post("/v1/embeddings", json=asked)
    assert response.status_code == 200, response.text
    assert [each["embedding"] for each in response.json()["data"]] == [[1, 2], [3, 4]]
    assert response.json()["usage"]["prompt_tokens"] == 7
    row = await row_of()
    assert (row.outcome, row.n_prompt_tokens, row.n_charged_tokens) == ("completed", 7, 7)
    response = await http.post("/v1/embeddings", json={**asked, "dimensions": 3})
    assert response.json()["error"]["param"] == "dimensions"


async def _of(value: bool) -> bool:
    return value


async def test_a_batch_gets_whole_answers(
    http: httpx.AsyncClient, upstream: Upstream, token: ApiToken
) -> None:
    upstream.answer = whole("Hello", prompt_tokens=2, completion_tokens=2)
    assert token.secret is not None
    principal = await database_hop(principal_of_secret, token.secret)
    found = await answer(
        principal=principal, endpoint=CHAT, body=json.dumps(body()).encode(), door="batch",
        priority=-1,
    )  # fmt: skip
    assert found.status == 200
    assert json.loads(found.body)["choices"][0]["message"]["content"] == "Hello"
    row = await row_of()
    assert (row.door, row.outcome, row.n_charged_tokens) == ("batch", "completed", 4)
    upstream.answer = of_body(b"", status=500)
    found = await answer(
        principal=principal, endpoint=CHAT, body=json.dumps(body()).encode(), door="batch",
        priority=-1,
    )  # fmt: skip
    assert (found.status, json.loads(found.body)["error"]["code"]) == (500, "engine_error")


async def test_kept_answers_are_forgotten_with_a_change_and_by_a_purge(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    def keep() -> None:
        Route.objects.update(caches_responses=True)
        change_stamp_bump("routes")

    await database_hop(keep)
    upstream.answer = whole("Hello", prompt_tokens=2, completion_tokens=2)

    async def told() -> str:
        response = await http.post(CHAT, json=body(temperature=0))
        assert response.status_code == 200, response.text
        return response.headers["x-response-cache"]

    assert [await told(), await told()] == ["miss", "hit"]
    assert len(upstream.asked) == 1
    await database_hop(remote_responses_purge, actor=SYSTEM)
    await wait_until_async("the purge to be seen", lambda: _is(told(), "miss"))
    assert await told() == "hit"
    server = await database_hop(RemoteServer.objects.get)
    await database_hop(remote_server_update, server=server, actor=SYSTEM, max_concurrency=7)
    await wait_until_async("the change to be seen", lambda: _is(told(), "miss"))


async def _is(asked: Awaitable[str], expected: str) -> bool:
    return await asked == expected
