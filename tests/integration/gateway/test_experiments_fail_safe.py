"""An experiment makes no request fail that would have been answered without it, and no arm gets
another's kept answer; against a real engine."""

from pathlib import Path

import httpx
import pytest
from django.core.cache import cache

from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.experiments.types import VariantSpec
from apps.rbac.models import ApiToken
from apps.routing.models import Route
from apps.tenants.models import Plan
from tests.factories import EngineProcessFactory, ReplicaFactory, RouteFactory
from tests.factories.deployments import DeploymentFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.experimenting import CHAT, arm, running, user_in
from tests.integration.gateway.failing_over import deployed, rows, said
from tests.processes import EngineRun
from tests.waiting import wait_until_async


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


def nobody_there(name: str, tmp_path: Path) -> Deployment:
    """Return a deployment whose engine is said to be ready and is not."""
    gone: Deployment = DeploymentFactory(name=name)
    process = EngineProcessFactory(
        ready=True, name=f"{name}-0", socket_path=str(tmp_path / "nothing.sock")
    )
    ReplicaFactory(deployment=gone, index=0, engine_process=process)
    return gone


async def test_an_engine_that_is_gone_is_its_routes_to_replace(
    http: httpx.AsyncClient, token: ApiToken, tmp_path: Path
) -> None:
    gone = await database_hop(nobody_there, "gone", tmp_path)
    experiment = await database_hop(running, VariantSpec(name="b", deployment=gone))
    inside = await user_in(experiment, "b", token)
    response = await http.post(CHAT, json=chat(user=inside))
    assert response.status_code == 200
    (row,) = await rows()
    assert (await arm(row), row.is_fallback) == ("b", True)
    assert (row.engine_name, row.outcome) == ("engine-tiny", "completed")


async def test_a_version_that_has_no_replica_any_more(
    http: httpx.AsyncClient, token: ApiToken, engine_process: EngineRun
) -> None:
    new = await database_hop(deployed, "new", engine_process)
    experiment = await database_hop(running, VariantSpec(name="b", deployment=new))
    await database_hop(lambda: Deployment.objects.filter(pk=new.pk).update(desired_state="stopped"))
    inside = await user_in(experiment, "b", token)
    assert (await http.post(CHAT, json=chat(user=inside))).status_code == 200
    (row,) = await rows()
    assert (await arm(row), row.is_fallback, row.rollout_arm) == ("b", True, "")


async def test_a_route_that_has_become_only_for_some(
    http: httpx.AsyncClient, token: ApiToken, engine_process: EngineRun
) -> None:
    new = await database_hop(deployed, "new", engine_process)
    other = await database_hop(lambda: RouteFactory(name="other", deployment=new))
    experiment = await database_hop(running, VariantSpec(name="b", other_route=other))
    inside = await user_in(experiment, "b", token)
    assert (await http.post(CHAT, json=chat(user=inside))).status_code == 200
    (row,) = await rows()
    assert (row.deployment_id, row.is_fallback) == (new.pk, False)
    await database_hop(lambda: Route.objects.filter(name="other").update(is_restricted=True))

    async def is_seen() -> bool:
        assert (await http.post(CHAT, json=chat(user=inside))).status_code == 200
        return (await rows())[-1].is_fallback

    await database_hop(said)
    await wait_until_async("the route to be only for some", is_seen)
    assert (await rows())[-1].deployment_id != new.pk


async def test_a_prompt_that_fits_no_more_goes_as_it_was_sent(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    plans = Plan.objects.filter(tenants=token.tenant_id)
    await database_hop(lambda: plans.update(max_context_tokens=100))
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template="word " * 100))
    inside = await user_in(experiment, "b", token)
    response = await http.post(CHAT, json=chat(user=inside))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == 24
    (row,) = await rows()
    assert (await arm(row), row.is_fallback, row.attempt) == ("b", True, 1)
    # What is wrong in itself is refused as it would be without.
    response = await http.post(CHAT, json=chat("word " * 30, user=inside))
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "The prompt has 16" in response.text  # 19 marks and 149 letters, not 500 more


async def test_a_prompt_that_no_engine_takes_goes_as_it_was_sent(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template="word " * 3_900))
    inside = await user_in(experiment, "b", token)
    response = await http.post(CHAT, json=chat(user=inside))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == 24
    (row,) = await rows()
    assert (await arm(row), row.is_fallback) == ("b", True)


async def test_what_a_budget_has_no_room_for_goes_as_it_was_sent(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    plans = Plan.objects.filter(tenants=token.tenant_id)
    await database_hop(lambda: plans.update(tokens_per_day=60))
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template="word " * 20))
    inside = await user_in(experiment, "b", token)
    response = await http.post(CHAT, json=chat(user=inside))
    assert response.status_code == 200, response.text
    (row,) = await rows()
    assert (await arm(row), row.is_fallback) == ("b", True)
    assert (row.n_prompt_tokens, row.n_charged_tokens) == (24, 32)
    assert (await http.post(CHAT, json=chat(user=inside, max_tokens=20))).status_code == 200
    assert (await http.post(CHAT, json=chat(user=inside))).status_code == 429


# -- kept answers --------------------------------------------------------------------------------


async def test_arms_share_no_kept_answer(http: httpx.AsyncClient, token: ApiToken) -> None:
    await database_hop(lambda: Route.objects.update(caches_responses=True))
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template="Be short."))
    inside = await user_in(experiment, "b", token)
    outside = await user_in(experiment, "control", token)
    told = []
    for user in (inside, outside, inside, outside):
        response = await http.post(CHAT, json=chat(user=user))
        told.append(response.headers["X-Response-Cache"])
    assert told == ["miss", "miss", "hit", "hit"]
    first, second, *kept = await rows()
    assert first.n_prompt_tokens > second.n_prompt_tokens == 24
    assert [row.experiment_arm for row in kept] == ["", ""]  # no engine's work


async def test_an_answer_to_another_prompt_is_not_kept(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    plans = Plan.objects.filter(tenants=token.tenant_id)
    await database_hop(lambda: plans.update(max_context_tokens=100))
    await database_hop(lambda: Route.objects.update(caches_responses=True))
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template="word " * 100))
    inside = await user_in(experiment, "b", token)
    for _ in range(2):
        response = await http.post(CHAT, json=chat(user=inside))
        assert response.status_code == 200
        assert response.headers["X-Response-Cache"] == "miss"
