"""Rows of the ledger as the doors make them: who asked, and what it cost, against a real engine."""

import asyncio
from decimal import Decimal
from typing import Any

import openai
import pytest

from apps.core.hop import database_hop
from apps.core.prices import Prices
from apps.metering.models import UsageRecord
from apps.metering.selectors import ledger_findings, reconciled_since
from apps.rbac.models import ApiToken
from apps.tenants.models import Plan
from tests.integration.gateway.conftest import chat
from tests.rows import all_of
from tests.waiting import wait_until_async

PRICES = Prices(prompt=15_000, cached=2_500, completion=60_001)


@pytest.fixture
async def priced(token: ApiToken) -> None:
    await price(token, price_prompt="1.5", price_cached="0.25", price_completion="6.0001")


async def price(token: ApiToken, **prices: str) -> None:
    fields = {name: Decimal(value) for name, value in prices.items()}
    await database_hop(lambda: Plan.objects.filter(tenants=token.tenant_id).update(**fields))


async def row(**fields: Any) -> UsageRecord:
    return await database_hop(lambda: all_of(UsageRecord).get(**fields))


def expected(found: UsageRecord) -> int:
    n_new = found.n_prompt_tokens - found.n_cached_tokens
    return n_new * 15_000 + found.n_cached_tokens * 2_500 + found.n_completion_tokens * 60_001


async def test_a_request_says_who_asked_and_what_it_cost(
    priced: None, client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    for _ in range(2):  # the second has its prompt from the prefix cache
        answer = await client.chat.completions.create(**chat("Hello " * 20, user="person-7"))
    found = await row(request_id=answer.id)
    assert (found.end_user, found.attempt, found.experiment_arm) == ("person-7", 1, "")
    assert (found.api_token_id, found.tenant_id) == (token.pk, token.tenant_id)
    assert found.n_cached_tokens > 0
    assert found.n_completion_tokens == 8
    assert (found.prices, found.cost_micro) == (PRICES, expected(found))


async def test_the_price_of_the_moment_holds(
    priced: None, client: openai.AsyncOpenAI, token: ApiToken
) -> None:
    task = asyncio.create_task(client.chat.completions.create(**chat(max_tokens=400)))

    async def has_begun() -> bool:
        return await database_hop(all_of(UsageRecord).exists)

    await wait_until_async("the row", has_begun)
    await price(token, price_prompt="99", price_completion="99")
    await task
    found = await row()
    assert (found.prices, found.cost_micro) == (PRICES, expected(found))


async def test_who_leaves_pays_what_was_made(priced: None, client: openai.AsyncOpenAI) -> None:
    task = asyncio.create_task(client.chat.completions.create(**chat(max_tokens=4_000)))

    async def has_begun() -> bool:
        return await database_hop(all_of(UsageRecord).exists)

    async def is_settled() -> bool:
        return (await row()).state == "settled"

    await wait_until_async("the row", has_begun)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until_async("the row to be settled", is_settled)
    found = await row()
    assert (found.outcome, found.cost_micro) == ("aborted", expected(found))
    assert found.cost_micro >= found.n_prompt_tokens * 2_500
    assert found.n_completion_tokens < 4_000


async def test_all_of_it_agrees(priced: None, client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(**chat())
    await client.completions.create(model="lab/tiny", prompt=["a", "bc"], max_tokens=3, user="x")
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**chat(max_tokens=10**6))

    def look() -> list[Any]:
        (now,) = [all_of(UsageRecord).latest("id").created_at]
        assert all_of(UsageRecord).count() == 3
        return ledger_findings(since=reconciled_since(now), now=now)

    assert await database_hop(look) == []
