"""What waits for a judge that cannot score it now, or ever; against a real engine."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.feedback.models import MetricEvent
from apps.gateway import judge_prompt, judging
from apps.gateway.runtime import GatewayRuntime
from apps.judging.models import AnswerSample, Judge
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_revoke
from apps.routing.models import Route
from apps.tenants.models import Plan, Tenant
from tests.factories import (
    RouteFactory,
)
from tests.integration.gateway.conftest import MODEL
from tests.integration.gateway.scoring import (
    SCORER,
    asked,
    due,
    judges_token,
    kept,
    made,
    problem,
    run,
    state,
    waits,
)
from tests.rows import all_of

__all__ = ["judges_token"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


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
