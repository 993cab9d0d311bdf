"""A request whose engine is killed under it twice is refused from then on; the agent, the engine
and the gateway are the real ones, and the test is what kills."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment
from apps.deployments.types import ReplicaEndpoint
from apps.engines.client import EngineClient
from apps.engines.interface import ReplicaClient
from apps.engines.models import EngineCrash, QuarantinedRequest
from apps.engines.paths import AgentPaths
from apps.engines.services import quarantine_lift
from apps.gateway.runtime import gateway_runtime
from apps.rbac.models import ApiToken
from config.asgi import application
from tests.factories import DeploymentFactory, ModelVersionFactory, RouteFactory
from tests.integration.deployments.test_reconciler import paths, ready, running_agent
from tests.integration.gateway.conftest import MODEL, chat
from tests.models import random_llama_dir
from tests.rows import all_of
from tests.waiting import wait_until_async

__all__ = ["paths"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

LONG = 16_000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("models"), max_position_embeddings=16_384)


@pytest.fixture
def deployment(settings: Any, model_dir: Path) -> Deployment:
    settings.MODELS_DIR = model_dir.parent
    deployment = DeploymentFactory(
        name="tiny",
        model_version=ModelVersionFactory(path=model_dir.name, context_length=16_384),
        kv_cache_tokens=65_536,
        dtype="float32",
    )
    RouteFactory(name=MODEL, deployment=deployment)
    return deployment


@pytest.fixture
async def http(deployment: Deployment, token: ApiToken) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {token.secret}"},
        timeout=60,
    ) as client:
        yield client
    await gateway_runtime().aclose()


async def post(http: httpx.AsyncClient, content: str, n_tokens: int) -> tuple[int, str]:
    body = chat(content, max_tokens=n_tokens, ignore_eos=True)
    response = await http.post("/v1/chat/completions", json=body)
    error = response.json().get("error") or {}
    return response.status_code, error.get("code", "")


async def served_by(epoch: int) -> ReplicaClient:
    """Wait for the gateway to have heard of that start of the engine; return its client."""
    runtime = gateway_runtime()
    await runtime.ready()

    def found() -> ReplicaEndpoint | None:
        endpoints = [e for group in runtime.table.snapshot.endpoints.values() for e in group]
        return next((each for each in endpoints if each.epoch == epoch), None)

    endpoint = await wait_until_async("the gateway to know the engine", found, timeout_s=60)
    assert endpoint is not None
    return await runtime.engines.client(endpoint)


async def until_running(client: ReplicaClient, n_running: int) -> None:
    assert isinstance(client, EngineClient)

    async def runs() -> bool:
        return (await client.ping(10)).n_running == n_running

    await wait_until_async("the requests to run", runs)


async def killed_under(http: httpx.AsyncClient, *contents: str, epoch: int) -> None:
    """Kill the engine once it computes these, and wait until that was told."""
    process = await ready(epoch=epoch)
    client = await served_by(epoch)
    running = [asyncio.create_task(post(http, content, LONG)) for content in contents]
    await until_running(client, len(contents))
    os.kill(process.pid or 0, signal.SIGKILL)
    assert await asyncio.gather(*running) == [(503, "engine_unavailable")] * len(contents)
    await wait_until_async(
        "the crash to be told",
        lambda: database_hop(lambda: EngineCrash.objects.filter(epoch=epoch).exists()),
    )


async def heard_of_the_last_change() -> bool:
    stamps = await database_hop(change_stamps)
    return (await gateway_runtime().stamps())["quarantine"] == stamps["quarantine"]


async def test_a_request_that_kills_twice_is_refused_and_its_company_is_not(
    http: httpx.AsyncClient, deployment: Deployment, paths: AgentPaths
) -> None:
    async with running_agent(paths):
        await killed_under(http, "poison", "innocent", epoch=1)
        await killed_under(http, "poison", "another", epoch=2)
        await ready(epoch=3)
        client = await served_by(3)
        row = await wait_until_async(
            "the quarantine", lambda: database_hop(lambda: all_of(QuarantinedRequest).first())
        )
        assert row is not None
        assert (row.deployment_name, row.n_deaths) == ("tiny", 2)
        assert await database_hop(lambda: all_of(QuarantinedRequest).count()) == 1

        await wait_until_async("the gateway to hear of it", heard_of_the_last_change)
        assert await post(http, "poison", LONG) == (422, "request_quarantined")
        # The same words to another end are another request, and so are others.
        assert await post(http, "poison", 8) == (200, "")
        assert await post(http, "innocent", 8) == (200, "")

        await database_hop(quarantine_lift, quarantined=row, actor=SYSTEM)
        await wait_until_async("the gateway to hear of it", heard_of_the_last_change)
        again = asyncio.create_task(post(http, "poison", LONG))
        await until_running(client, 1)
        again.cancel()
