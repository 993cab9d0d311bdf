"""Limits at the doors, against a real engine: refused truly, cut exactly, told in headers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from django.core.cache import cache

from apps.core.hop import database_hop
from apps.metering.models import Meter, UsageRecord
from apps.rbac.models import ApiToken
from apps.tenants.models import Plan
from engine_service.server.limits import Limits as EngineLimits
from tests.factories import EndUserFactory
from tests.integration.gateway.conftest import MODEL, chat
from tests.rows import all_of
from tests.waiting import wait_until_async

# <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n, one token a byte or mark
N_PROMPT = 24


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def limit(token: ApiToken, **fields: Any) -> None:
    """Set limits of the plan that the token's tenant has; before its first request."""
    await database_hop(lambda: Plan.objects.filter(tenants=token.tenant_id).update(**fields))


async def rows() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))


async def n_tokens_metered() -> int:
    """What the tenant's day has used; nothing may be held once all is settled."""
    meters = await database_hop(
        lambda: list(all_of(Meter).filter(scope__startswith="tenant", period__contains="-"))
    )
    assert all(meter.n_held == 0 for meter in meters)
    assert len({meter.n_used for meter in meters}) == 1
    return int(meters[0].n_used)


@asynccontextmanager
async def running(client: openai.AsyncOpenAI) -> AsyncIterator[None]:
    """A long request, which is left at the end of the block."""
    task = asyncio.create_task(client.chat.completions.create(**chat(max_tokens=4_000)))

    async def has_begun() -> bool:
        return bool(await rows())

    await wait_until_async("the first request's row", has_begun)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_minute_is_told_and_then_refused(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, requests_per_minute=2)
    left = []
    for _ in range(2):
        answer = await http.post("/v1/chat/completions", json=chat())
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        left.append(answer.headers["x-ratelimit-remaining-requests"])
    assert left == ["1", "0"]
    with pytest.raises(openai.RateLimitError) as refusal:
        await client.chat.completions.create(**chat())
    headers = refusal.value.response.headers
    assert refusal.value.code == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["x-should-retry"] == "true"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == f"{headers['retry-after']}s"
    assert len(await rows()) == 2


async def test_an_answer_ends_at_the_token_that_the_budget_pays(
    client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, tokens_per_day=N_PROMPT + 5)
    raw = await client.chat.completions.with_raw_response.create(**chat())
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == N_PROMPT
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")
    assert raw.headers["x-ratelimit-limit-tokens"] == str(N_PROMPT + 5)
    assert raw.headers["x-ratelimit-remaining-tokens"] == "0"
    assert await n_tokens_metered() == N_PROMPT + 5

    with pytest.raises(openai.RateLimitError) as refusal:
        await client.chat.completions.create(**chat())
    assert refusal.value.code == refusal.value.type == "insufficient_quota"
    assert refusal.value.response.headers["x-should-retry"] == "false"
    assert int(refusal.value.response.headers["retry-after"]) <= 86_400
    [row] = await rows()
    assert (row.n_reserved_tokens, row.n_charged_tokens) == (N_PROMPT + 5, N_PROMPT + 5)


async def test_a_stream_is_cut_the_same_way(client: openai.AsyncOpenAI, token: ApiToken) -> None:
    await limit(token, tokens_per_month=N_PROMPT + 3)
    stream = await client.chat.completions.create(
        **chat(stream=True, stream_options={"include_usage": True})
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        "length"
    ]
    assert await n_tokens_metered() == N_PROMPT + 3


async def test_several_answers_share_what_is_left(
    client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, tokens_per_day=N_PROMPT + 7)
    answer = await client.chat.completions.create(**chat(n=2))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert await n_tokens_metered() == N_PROMPT + 6


async def test_requests_that_run_hold_what_they_may_use(
    client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, tokens_per_day=N_PROMPT + 4_000)
    async with running(client):
        with pytest.raises(openai.RateLimitError, match="still run hold") as refusal:
            await client.chat.completions.create(**chat())
        assert refusal.value.response.headers["x-should-retry"] == "true"
    assert 0 < await n_tokens_metered() < N_PROMPT + 4_000


async def test_one_at_a_time(client: openai.AsyncOpenAI, token: ApiToken) -> None:
    await limit(token, max_concurrent_requests=1)
    async with running(client):
        with pytest.raises(openai.RateLimitError) as refusal:
            await client.chat.completions.create(**chat())
        assert refusal.value.code == "concurrency_limit_exceeded"
    await client.chat.completions.create(**chat())


async def test_a_model_that_is_not_allowed_looks_like_none(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await limit(token, allowed_routes="another")
    bodies = []
    for name in (MODEL, "nothing/of-the-kind"):
        answer = await http.post("/v1/chat/completions", json={**chat(), "model": name})
        assert answer.status_code == 404
        bodies.append(answer.text.replace(name, "NAME"))
        for path, field in (("/tokenize", "prompt"), ("/v1/embeddings", "input")):
            answer = await http.post(path, json={"model": name, field: "x"})
            assert answer.status_code == 404
        assert (await http.get(f"/v1/models/{name}")).status_code == 404
    assert bodies[0] == bodies[1]
    assert (await http.get("/v1/models")).json()["data"] == []
    assert await rows() == []


@pytest.mark.parametrize(("fields", "param"), [({"max_tokens": 20}, "max_tokens"), ({}, None)])
async def test_the_context_that_is_allowed(
    fields: dict[str, Any], param: str | None, client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, max_context_tokens=N_PROMPT + 10)
    body = chat()
    del body["max_tokens"]
    answer = await client.chat.completions.create(**body)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.chat.completions.create(**chat("Hello" if fields else "Hello" * 9, **fields))
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", param)
    assert len(await rows()) == 1


async def test_prompts_that_are_over_the_limit_leave_no_trace_in_the_engine(
    client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    await limit(token, max_context_tokens=N_PROMPT + 8)
    for _ in range(EngineLimits().max_prepared + 1):  # more than it keeps
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**chat("Hello, hello"))
    await client.chat.completions.create(**chat())


async def test_each_end_user_has_a_budget(client: openai.AsyncOpenAI, token: ApiToken) -> None:
    await database_hop(
        lambda: EndUserFactory(
            tenant_id=token.tenant_id, identifier="*", tokens_per_day=N_PROMPT + 8
        )
    )
    for name in ("ada", "bob"):
        await client.chat.completions.create(**chat(user=name))
        with pytest.raises(openai.RateLimitError, match="This end user"):
            await client.chat.completions.create(**chat(user=name))
    await client.chat.completions.create(**chat())


async def test_what_the_database_cannot_say_is_refused(
    client: openai.AsyncOpenAI, token: ApiToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit(token, requests_per_minute=100)

    def away(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(type(cache._connections[cache._alias]), "add", away)  # type: ignore[attr-defined]
    with pytest.raises(openai.InternalServerError) as refusal:
        await client.chat.completions.create(**chat())
    assert (refusal.value.status_code, refusal.value.code) == (503, "unavailable")
    assert await rows() == []


async def test_of_two_hundred_at_once_a_budget_admits_what_it_pays(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await limit(token, tokens_per_day=10 * (N_PROMPT + 8))
    body = chat(max_tokens=8, ignore_eos=True)
    answers = await asyncio.gather(
        *(http.post("/v1/chat/completions", json=body) for _ in range(200))
    )
    n_paid = sum(answer.status_code == 200 for answer in answers)
    assert 1 <= n_paid <= 10
    # Refused by the budget, or before it by an engine with too many prompts to look at.
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert [row.n_charged_tokens for row in await rows()] == [N_PROMPT + 8] * n_paid
    assert await n_tokens_metered() == n_paid * (N_PROMPT + 8)
