"""Answers that are told again, through the doors in this process, against a real engine."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import httpx
import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import Meter
from apps.metering.selectors import ledger_findings
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_revoke
from apps.routing.models import Route
from apps.routing.services import (
    route_update,
)
from apps.tenants.models import Plan
from tests.factories.access import ApiTokenFactory
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.kept import (
    CHAT,
    HEADER,
    NO_STORE,
    USE,
    caching,
    empty_cache,
    http,
    ledger,
    told,
)
from tests.processes import EngineRun
from tests.rows import all_of
from tests.waiting import wait_until_async

__all__ = ["caching", "empty_cache", "http"]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks of a stream but for what names this request."""
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(each) for each in data]
    for chunk in chunks:
        del chunk["id"], chunk["created"]
    return chunks


def without_name(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    del body["id"], body["created"]
    return body


async def test_an_equal_request_gets_the_answer_again_and_costs_nothing(
    http: httpx.AsyncClient, token: ApiToken, engine_process: EngineRun
) -> None:
    plans = Plan.objects.filter(tenants=token.tenant_id)
    limits = {"tokens_per_day": 1000, "requests_per_minute": 5}
    prices = {"price_prompt": Decimal("0.0003"), "price_completion": Decimal("0.0007")}
    await database_hop(lambda: plans.update(**limits, **prices))
    first = await http.post(CHAT, json=chat())
    n_engine = engine_process.stats().n_prompt_tokens
    again = await http.post(CHAT, json=chat(user="u-1", metadata={"a": "b"}))
    assert (first.headers[HEADER], again.headers[HEADER]) == ("miss", "hit")
    assert without_name(first) == without_name(again)
    assert again.json()["id"] == again.headers["x-request-id"] != first.json()["id"]
    assert engine_process.stats().n_prompt_tokens == n_engine
    assert again.headers["x-ratelimit-remaining-requests"] == "3"
    made, kept = await ledger()
    assert (made.is_from_cache, made.n_completion_tokens, made.n_charged_tokens) == (False, 8, 32)
    assert made.cost_micro == 24 * 3 + 8 * 7
    assert (kept.is_from_cache, kept.request_id) == (True, again.headers["x-request-id"])
    assert (kept.n_prompt_tokens, kept.n_completion_tokens, kept.n_charged_tokens) == (24, 0, 0)
    assert (kept.cost_micro, kept.outcome, kept.finish_reason) == (0, "completed", "length")
    assert (kept.end_user, kept.state, kept.engine_name) == ("u-1", "settled", "")
    meters = await database_hop(lambda: set(all_of(Meter).values_list("n_used", "n_held")))
    assert (32, 0) in meters and {used for used, _ in meters} <= {0, 32}
    now = timezone.now()
    assert await database_hop(ledger_findings, since=made.created_at, now=now) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(n=2, logprobs=True, top_logprobs=2)),
        ("/v1/completions", {"prompt": ["Hello", "There", "Hello"], "temperature": 0}),
        ("/v1/responses", {"input": "Hello", "temperature": 0, "max_output_tokens": 16}),
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": "Hi"}],
                "temperature": 0,
                "max_tokens": 8,
            },
        ),
    ],
)
async def test_every_endpoint_streamed_and_whole(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], engine_process: EngineRun
) -> None:
    body = {"model": MODEL, **body}
    streamed = await http.post(path, json={**body, "stream": True})
    assert streamed.headers[HEADER] == "miss"
    n_engine = engine_process.stats().n_prompt_tokens
    whole = await http.post(path, json=body)
    again = await http.post(path, json={**body, "stream": True})
    assert (whole.headers[HEADER], again.headers[HEADER]) == ("hit", "hit")
    assert whole.json()["usage"]
    assert again.text.count("data:") == streamed.text.count("data:")
    assert engine_process.stats().n_prompt_tokens == n_engine


async def test_a_stream_comes_in_the_same_pieces_with_the_same_usage(
    http: httpx.AsyncClient,
) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    first, again = [await http.post(CHAT, json=body) for _ in range(2)]
    assert (first.headers[HEADER], again.headers[HEADER]) == ("miss", "hit")
    assert events(first) == events(again)
    assert events(again)[-1]["usage"]["completion_tokens"] == 8
    plain = await http.post(CHAT, json=chat())
    text = "".join(c["delta"].get("content", "") for e in events(again) for c in e["choices"])
    assert plain.headers[HEADER] == "hit"
    assert plain.json()["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 7},
        {"seed": 1},
        {"n": 2},
        {"stop": "x"},
        {"top_p": 0.5},
        {"logit_bias": {"7": 1}},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"messages": [{"role": "system", "content": "Hello"}]},
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
    ],
)
async def test_what_shapes_an_answer_makes_another_request(
    http: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    assert await told(http) == "miss"
    assert await told(http, chat(**changes)) == "miss"
    assert await told(http) == "hit"


async def test_only_what_is_always_the_same_unless_the_client_says_so(
    http: httpx.AsyncClient,
) -> None:
    drawn = chat(temperature=1, seed=5)
    assert [await told(http, drawn) for _ in range(2)] == [None, None]
    assert [await told(http, drawn, **USE) for _ in range(2)] == ["miss", "hit"]
    for headers in (NO_STORE, {"Cache-Control": "max-age=0, no-store"}):
        assert [await told(http, **headers) for _ in range(2)] == [None, None]
    assert await told(http) == "miss"
    assert await told(http, **NO_STORE) is None
    assert sum(row.is_from_cache for row in await ledger()) == 1
    n_rows = len(await ledger())
    refused = await http.post(CHAT, json=chat(), headers={"X-Response-Cache": "maybe"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Response-Cache")
    assert len(await ledger()) == n_rows


async def test_off_unless_the_route_says_so(
    http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    def switch(is_on: bool) -> None:
        route_update(route=Route.objects.get(name=MODEL), actor=SYSTEM, caches_responses=is_on)

    async def is_off() -> bool:
        return not runtime.table.snapshot.routes[MODEL].caches_responses

    assert await told(http) == "miss"
    await database_hop(switch, False)
    await wait_until_async("the route to be read", is_off)
    assert [await told(http, **USE) for _ in range(2)] == [None, None]
    assert not any(row.is_from_cache for row in await ledger())
    assert Route._meta.get_field("caches_responses").default is False


async def test_no_answer_crosses_tenants(http: httpx.AsyncClient, token: ApiToken) -> None:
    def others() -> tuple[ApiToken, ApiToken]:
        return ApiTokenFactory(tenant=token.tenant), ApiTokenFactory()

    assert await told(http) == "miss"
    same, other = await database_hop(others)
    assert await told(http, Authorization=f"Bearer {same.secret}") == "hit"  # type: ignore[attr-defined]
    for expected in ("miss", "hit"):
        headers = {"Authorization": f"Bearer {other.secret}"}  # type: ignore[attr-defined]
        assert await told(http, **headers) == expected


async def test_of_twenty_at_once_one_runs(http: httpx.AsyncClient) -> None:
    body = chat(max_tokens=200, ignore_eos=True)
    answers = await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(20)))
    said = sorted(each.headers[HEADER] for each in answers)
    assert (said[-1], said.count("miss")) == ("miss", 1)
    assert set(said[:-1]) <= {"coalesced", "hit"} and "coalesced" in said
    assert len({each.json()["choices"][0]["message"]["content"] for each in answers}) == 1
    rows = await ledger()
    assert sorted(row.n_completion_tokens for row in rows) == [0] * 19 + [200]


async def test_one_that_leaves_ends_it_for_nobody_else(
    http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    body = chat(max_tokens=1500, ignore_eos=True)
    leader = asyncio.create_task(http.post(CHAT, json=body))

    async def runs() -> bool:
        return bool(runtime.live)

    await wait_until_async("the first to run", runs)
    waiting = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(2)]
    [run] = runtime.runs.values()

    async def all_wait() -> bool:
        return run._n_interested == 3

    await wait_until_async("the others to wait", all_wait)
    for task in (leader, waiting[0]):
        task.cancel()
    response = await waiting[1]
    await asyncio.gather(leader, waiting[0], return_exceptions=True)
    assert response.headers[HEADER] == "coalesced"
    assert response.json()["usage"]["completion_tokens"] == 1500
    made, kept = await ledger()
    assert (made.outcome, made.n_completion_tokens, kept.is_from_cache) == ("completed", 1500, True)
    assert not runtime.runs


async def test_the_last_one_to_leave_ends_it_and_nothing_is_kept(
    http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    body = chat(max_tokens=3000, ignore_eos=True)
    task = asyncio.create_task(http.post(CHAT, json=body))

    async def runs() -> bool:
        return len(await ledger()) == 1

    async def is_settled() -> bool:
        return [row.state for row in await ledger()] == ["settled"]

    await wait_until_async("it to run", runs)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until_async("it to be settled", is_settled)
    [row] = await ledger()
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")
    assert (len(runtime.responses), runtime.runs, runtime.live) == (0, {}, set())


async def test_those_who_waited_for_a_run_that_failed_run_themselves(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    body = chat(max_tokens=3500, ignore_eos=True)
    other = await database_hop(lambda: ApiTokenFactory(tenant=token.tenant))
    headers = {"Authorization": f"Bearer {other.secret}"}
    leader = asyncio.create_task(http.post(CHAT, json=body, headers=headers))

    async def runs() -> bool:
        return bool(runtime.live)

    await wait_until_async("the first to run", runs)
    [run] = runtime.runs.values()
    waiter = asyncio.create_task(http.post(CHAT, json=body))

    async def waits() -> bool:
        return run._n_interested == 2

    await wait_until_async("the second to wait", waits)
    await database_hop(lambda: api_token_revoke(token=other, actor=SYSTEM))
    refused, answer = await leader, await waiter
    assert refused.status_code == 401
    assert (answer.status_code, answer.headers[HEADER]) == (200, "miss")
    assert answer.json()["usage"]["completion_tokens"] == 3500
    assert not any(row.is_from_cache for row in await ledger())


async def test_a_budget_that_cuts_an_answer_cuts_nobody_elses(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    plans = Plan.objects.filter(tenants=token.tenant_id)
    await database_hop(lambda: plans.update(tokens_per_day=24 + 5))
    response = await http.post(CHAT, json=chat())
    assert (response.headers[HEADER], response.json()["usage"]["completion_tokens"]) == ("miss", 5)
    assert len(runtime.responses) == 0


async def test_limits_hold_for_a_kept_answer(http: httpx.AsyncClient, token: ApiToken) -> None:
    def narrowed(**fields: Any) -> ApiToken:
        return ApiTokenFactory(tenant=token.tenant, **fields)

    assert await told(http) == "miss"
    n_rows = len(await ledger())
    for fields, status in (
        ({"allowed_routes": ["another"]}, 404),
        ({"max_context_tokens": 25}, 400),
    ):
        narrow = await database_hop(lambda fields=fields: narrowed(**fields))
        headers = {"Authorization": f"Bearer {narrow.secret}"}
        refused = await http.post(CHAT, json=chat(), headers=headers)
        assert refused.status_code == status
        assert HEADER not in refused.headers
    assert len(await ledger()) == n_rows
