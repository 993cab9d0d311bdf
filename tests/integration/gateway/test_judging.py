"""Judges that score what waits for them, by a real engine."""

import asyncio
from typing import Any

import httpx
import pytest
from django.core.cache import cache

from apps.core.hop import database_hop
from apps.experiments.tasks import count
from apps.experiments.types import VariantSpec
from apps.feedback.models import MetricEvent
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.services import answer
from apps.gateway.types import JUDGE
from apps.judging.types import JudgedText, Turn
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_token
from apps.routing.models import Route
from apps.tenants.models import Plan
from tests.integration.experiments.made import totals
from tests.integration.experiments.recount import recount
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.experimenting import CHAT
from tests.integration.gateway.judged import all_kept, judged
from tests.integration.gateway.scoring import (
    SCORER,
    asked,
    judges_token,
    kept,
    made,
    problem,
    run,
    run_until_none_waits,
    state,
)
from tests.rows import all_of

__all__ = ["judges_token"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def test_from_an_answer_to_a_number_of_its_arm(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, judges_token: ApiToken
) -> None:
    def begun() -> Any:
        made(judges_token)
        return judged(token, VariantSpec(name="b", parameters={"max_tokens": 3}))

    experiment = await database_hop(begun)
    for number in range(12):
        body = chat(f"Hello {number}", user=f"u-{number}")
        assert (await http.post(CHAT, json=body)).status_code == 200
    await all_kept(runtime)
    assert await state() == (12, 0, 0)
    await run_until_none_waits()
    n_waiting, n_scored, n_failed = await state()
    assert (n_scored, n_waiting, n_failed) == (12, 0, 0), await problem()
    events = await database_hop(lambda: list(all_of(MetricEvent).order_by("id")))
    requests = await database_hop(
        lambda: dict(all_of(UsageRecord).exclude(door=JUDGE).values_list("request_id", "end_user"))
    )
    assert {event.request_id: event.end_user for event in events} == requests
    assert {event.name for event in events} == {"judge:helpful"}
    assert {event.value for event in events} <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert all(0 < len(event.comment) <= 300 for event in events)
    await database_hop(count)
    sums = await database_hop(totals, experiment)
    scored = {key: moments for key, moments in sums.items() if key[1] == "judge:helpful"}
    assert scored == {
        key: moments
        for key, moments in (await database_hop(recounted, experiment)).items()
        if key[1] == "judge:helpful"
    }
    whole = [moments for (_, _, segment), moments in scored.items() if not segment]
    assert len(whole) == 2
    assert sum(moments[1] for moments in whole) == sum(event.value for event in events) * 10**6


def recounted(experiment: Any) -> Any:
    """The recount knows of no judges: to it they are programs that tell of a number."""
    found = recount(experiment)
    events = all_of(MetricEvent).filter(name="judge:helpful")
    by_arm: dict[tuple[str, str, str], list[int]] = {}
    names = {each.pk: each.name for each in experiment.variants.all()}
    for event in events:
        row = all_of(UsageRecord).get(request_id=event.request_id)
        arm = names[int(row.experiment_arm.split(".")[1][1:])]
        y = round(event.value * 1_000_000)
        unit = (1, y, 1, 0, 0, y * y, y, 0, 0, 1, 0, 0, 0, 0, 0)
        for segment in ("", f"tenant:{row.tenant_id}", f"door:{row.door}"):
            sums = by_arm.setdefault((arm, "judge:helpful", segment), [0] * 15)
            for place, number in enumerate(unit):
                sums[place] += number
    return {**found, **by_arm}


async def test_who_pays_is_the_judges_tenant(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    await database_hop(lambda: kept(made(judges_token)))
    await run()
    (row, *_) = await asked()
    assert (row.tenant_id, row.api_token_id) == (judges_token.tenant_id, judges_token.pk)
    assert (row.route_name, row.door, row.experiment_arm) == (SCORER, JUDGE, "")
    assert row.n_charged_tokens > 0


async def test_no_minute_holds_it_up(runtime: GatewayRuntime, judges_token: ApiToken) -> None:
    """Nor does it take a place in it from those who wait for an answer."""

    def begun() -> None:
        Plan.objects.filter(tenants=judges_token.tenant_id).update(requests_per_minute=1)
        one = made(judges_token)
        for number in range(3):
            kept(one, number=number)

    await database_hop(begun)
    await run_until_none_waits()
    assert (await state())[1] == 3


async def test_two_workers_at_once(runtime: GatewayRuntime, judges_token: ApiToken) -> None:
    def many() -> None:
        one = made(judges_token)
        for number in range(10):
            kept(one, number=number)

    await database_hop(many)
    await asyncio.gather(run(), run())
    await run_until_none_waits()
    n_waiting, n_scored, n_failed = await state()
    events = await database_hop(
        lambda: list(all_of(MetricEvent).values_list("request_id", flat=True))
    )
    assert len(events) == len(set(events)) == n_scored
    assert (n_waiting, n_scored + n_failed) == (0, 10)


async def test_an_answer_to_a_judge_is_never_kept(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    """It has another tenant's text in it."""
    await database_hop(lambda: Route.objects.update(caches_responses=True))
    await database_hop(lambda: kept(made(judges_token)))
    await run()
    assert (await asked()) != []
    assert (len(runtime.responses), runtime.runs) == (0, {})
    principal = await database_hop(principal_of_token, judges_token.pk)
    body = httpx.Request("POST", "http://x", json={**chat(), "model": SCORER}).content
    for wish, n_kept in (("no-store", 0), (None, 1)):
        found = await answer(
            principal=principal, endpoint=CHAT, body=body, door=JUDGE, priority=0, wish=wish
        )
        assert found.status == 200
        await all_kept(runtime)
        assert len(runtime.responses) == n_kept


async def test_what_is_too_long_for_a_judge_is_shortened(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    """The tiny model reads 16,384 tokens, one for each byte."""
    text = JudgedText(asked=(Turn("user", "x" * 16_000),), answer="y" * 16_000)
    await database_hop(lambda: kept(made(judges_token), text=text))
    await run()
    (row, *_) = await asked()
    assert 12_000 < row.n_prompt_tokens < 16_384


async def test_what_is_too_long_even_so_is_given_up(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        plans = Plan.objects.filter(tenants=judges_token.tenant_id)
        plans.update(max_context_tokens=1000)
        kept(made(judges_token))

    await database_hop(begun)
    await run()
    assert await state() == (0, 0, 1)
    assert "Your limits allow 1000 tokens of context" in await problem()
    assert await asked() == []
