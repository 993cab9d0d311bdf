"""Judges that score what waits for them, by a real engine: what becomes of it, good and bad."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.cache import cache
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.experiments.tasks import count
from apps.experiments.types import VariantSpec
from apps.feedback.models import MetricEvent
from apps.gateway import judge_prompt, judging
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.services import answer
from apps.gateway.types import JUDGE
from apps.judging.models import AnswerSample, Judge
from apps.judging.samples import samples_keep
from apps.judging.types import JudgedText, Turn
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_token
from apps.rbac.services import api_token_revoke
from apps.routing.models import Route
from apps.tenants.models import Plan, Tenant
from tests.factories import (
    ApiTokenFactory,
    PlanFactory,
    RouteFactory,
    TenantFactory,
    UsageRecordFactory,
)
from tests.integration.experiments.made import totals
from tests.integration.experiments.recount import recount
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.experimenting import CHAT
from tests.integration.gateway.judged import all_kept, judge, judged
from tests.rows import all_of

SCORER = "lab/judge"
TEXT = JudgedText(asked=(Turn("user", "What is two and two?"),), answer="Four.")


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


@pytest.fixture
def judges_token(route: str) -> ApiToken:
    """Of a tenant that runs the judges, and pays for them; its route leads to the same engine."""
    RouteFactory(name=SCORER, deployment=Deployment.objects.get(name="tiny"))
    return ApiTokenFactory(tenant=TenantFactory(plan=PlanFactory()))


def made(judges_token: ApiToken, name: str = "helpful", **fields: Any) -> Judge:
    return judge(name, **{"route": SCORER, "api_token": judges_token, **fields})


def kept(judge: Judge, *, number: int = 1, text: JudgedText = TEXT, **fields: Any) -> None:
    """An answer that waits, and its row in the ledger."""
    tenant = TenantFactory(allows_judging=True)
    row = UsageRecordFactory(tenant_id=tenant.pk, request_id=f"chatcmpl-{number}", **fields)
    assert samples_keep(
        judge_ids=[judge.pk],
        tenant_id=tenant.pk,
        request_id=row.request_id,
        end_user="joe",
        text=text,
    )


async def run() -> None:
    await judging.judge(is_stopping=lambda: False)


async def run_until_none_waits() -> None:
    """A slice may be too short on a busy machine; and what the model spoils is tried again."""
    for _ in range(20):
        await run()
        if not await database_hop(all_of(AnswerSample).count):
            return
        await database_hop(due)


async def state(name: str = "helpful") -> tuple[int, int, int]:
    """Of a judge: how many wait, are scored, and are without a score."""

    def found() -> tuple[int, int, int]:
        row = Judge.objects.get(name=name)
        return all_of(AnswerSample).filter(judge=row).count(), row.n_scored, row.n_failed

    return await database_hop(found)


async def problem(name: str = "helpful") -> str:
    return (await database_hop(Judge.objects.get, name=name)).last_problem


async def waits() -> tuple[int, float]:
    """Of the one that waits: its attempts, and for how long yet."""
    row = await database_hop(all_of(AnswerSample).get)
    return row.attempt, (row.due_at - timezone.now()).total_seconds()


async def asked() -> list[UsageRecord]:
    """What judges have asked, by the ledger."""
    return await database_hop(lambda: list(all_of(UsageRecord).filter(door=JUDGE).order_by("id")))


def due() -> None:
    all_of(AnswerSample).update(due_at=timezone.now() - timedelta(seconds=1))


# -- scores ---------------------------------------------------------------------------------------


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


# -- when it cannot be now ------------------------------------------------------------------------


async def test_a_route_without_a_replica_loses_nothing_and_holds_up_no_other_judge(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        RouteFactory(name="lab/nowhere")
        away, here = made(judges_token, "away", route="lab/nowhere"), made(judges_token)
        for number in range(8):
            kept(away, number=number)
        kept(here, number=9)

    await database_hop(begun)
    await run()
    assert (await state("away"))[0] == 8
    attempts = await database_hop(
        lambda: set(
            all_of(AnswerSample).filter(judge__name="away").values_list("attempt", "due_at")
        )
    )
    assert {attempt for attempt, _ in attempts} == {0}
    # So many were in hand when the first was refused; the others did not have to be asked for.
    later = [due_at for _, due_at in attempts if due_at > timezone.now() + timedelta(seconds=5)]
    assert 1 <= len(later) <= judging.CONCURRENCY
    assert await problem("away") != ""
    assert [row.route_name for row in await asked()][:1] == [SCORER]


async def test_the_pause_grows_with_the_time_that_it_waits(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        RouteFactory(name="lab/nowhere")
        kept(made(judges_token, route="lab/nowhere"))

    await database_hop(begun)
    for waited_s, pause_s in ((0, 10), (200, 200), (86_400, 600)):
        created_at = timezone.now() - timedelta(seconds=waited_s)
        await database_hop(lambda at=created_at: all_of(AnswerSample).update(created_at=at))
        await database_hop(due)
        await run()
        attempt, left_s = await waits()
        assert attempt == 0
        assert pause_s - 5 < left_s <= pause_s + 5


def _revoked(token: ApiToken) -> None:
    api_token_revoke(token=token, actor=SYSTEM)


def _without(token: ApiToken) -> None:
    Judge.objects.update(api_token=None)


def _of_another_scope(token: ApiToken) -> None:
    ApiToken._base_manager.filter(pk=token.pk).update(scopes=["batches"])


def _switched_off(token: ApiToken) -> None:
    token.tenant.is_active = False
    token.tenant.save()


SPOILED: Mapping[str, Any] = {
    "This API key was revoked.": _revoked,
    "The judge has none.": _without,
    "This needs the scope 'inference', which you do not have.": _of_another_scope,
    "The tenant of this API key is not active.": _switched_off,
}


@pytest.mark.parametrize("says", SPOILED)
async def test_a_token_that_is_not_good(
    runtime: GatewayRuntime, judges_token: ApiToken, says: str
) -> None:
    await database_hop(lambda: kept(made(judges_token)))
    await database_hop(SPOILED[says], judges_token)
    await run()
    assert await state() == (1, 0, 0)
    assert await problem() == f"Its API token is not good: {says}"
    attempt, left_s = await waits()
    assert (attempt, 290 < left_s <= 300) == (0, True)
    assert await asked() == []
    assert await database_hop(all_of(MetricEvent).count) == 0


async def test_a_route_that_its_token_may_not_use(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        kept(made(judges_token))
        Route.objects.filter(name=SCORER).update(is_restricted=True)

    await database_hop(begun)
    await run()
    assert await state() == (1, 0, 0)
    assert SCORER in await problem()
    attempt, left_s = await waits()
    assert (attempt, 290 < left_s <= 300) == (0, True)
    assert await asked() == []


async def test_a_budget_that_is_spent_is_waited_for(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    plans = Plan.objects.filter(tenants=judges_token.tenant_id)

    def begun() -> None:
        plans.update(tokens_per_day=100)
        kept(made(judges_token))

    await database_hop(begun)
    await run()
    assert await state() == (1, 0, 0)
    assert "day" in await problem()
    attempt, left_s = await waits()
    assert (attempt, 0 < left_s <= 3600) == (0, True)
    await database_hop(lambda: plans.update(tokens_per_day=1_000_000))
    await database_hop(due)
    await run()
    assert len(await asked()) == 1


async def test_a_tenant_that_changes_its_mind_while_it_waits(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        one = made(judges_token)
        kept(one)
        sample = all_of(AnswerSample).get()
        Tenant.objects.filter(pk=sample.tenant_id).update(allows_judging=False)

    await database_hop(begun)
    await run()
    assert await state() == (0, 0, 1)
    assert await asked() == []
    assert await database_hop(all_of(MetricEvent).count) == 0


async def test_a_judge_that_is_off_scores_nothing(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    await database_hop(lambda: kept(made(judges_token)))
    await database_hop(lambda: Judge.objects.update(is_on=False))
    await run()
    assert await state() == (1, 0, 0)
    assert await asked() == []


async def test_what_is_no_verdict_is_tried_again_later(
    runtime: GatewayRuntime, judges_token: ApiToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge whose answers are cut by a length that is too short for any."""
    monkeypatch.setattr(judge_prompt, "MAX_TOKENS", 3)
    await database_hop(lambda: kept(made(judges_token)))
    for attempt, pause_s in enumerate(judging.TRIED_PAUSES_S, start=1):
        await run()
        n_attempts, left_s = await waits()
        assert (n_attempts, await state()) == (attempt, (1, 0, 0))
        assert pause_s - 5 < left_s <= pause_s
        assert await problem() == "The judge's answer was cut by its length."
        await database_hop(due)
    await run()
    assert await state() == (0, 0, 1)
    assert len(await asked()) == 4


async def test_a_worker_that_is_stopped_gives_back_what_it_has(
    runtime: GatewayRuntime, judges_token: ApiToken
) -> None:
    def begun() -> None:
        one = made(judges_token)
        for number in range(6):
            kept(one, number=number)

    await database_hop(begun)
    looks = iter([False])
    await judging.judge(is_stopping=lambda: next(looks, True))
    n_waiting, n_scored, n_failed = await state()
    assert (n_waiting + n_scored, n_failed) == (6, 0)
    left: list[tuple[int, datetime]] = await database_hop(
        lambda: list(all_of(AnswerSample).values_list("attempt", "due_at"))
    )
    assert len(left) >= 2
    assert all(due_at <= timezone.now() or attempt for attempt, due_at in left)


async def test_no_work_asks_nobody(runtime: GatewayRuntime, tmp_path: Path) -> None:
    await run()
    assert await asked() == []
    assert MODEL in {route.name for route in await database_hop(lambda: list(Route.objects.all()))}
