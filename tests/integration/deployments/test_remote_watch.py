"""The agent and a remote server: it is looked at, and said to be ready or why it is not."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.console.health import deployment_card
from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment
from apps.deployments.selectors import deployments_all, replica_endpoints
from apps.deployments.services import (
    deployment_delete,
    deployment_start,
    deployment_stop,
    remote_server_update,
)
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths, agent_paths
from apps.engines.remote import watch
from tests import remote
from tests.factories import DeploymentFactory, RemoteServerFactory
from tests.integration.deployments.test_reconciler import process_when, ready, running_agent
from tests.remote import KEY, MODEL, Upstream
from tests.waiting import wait_until_async

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with remote.upstream() as run:
        yield run


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[AgentPaths]:
    yield agent_paths(tmp_path)


@pytest.fixture
async def deployment(
    upstream: Upstream, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(watch, "_LOOK_AGAIN_S", 0.1)

    def make() -> Deployment:
        server = RemoteServerFactory(base_url=upstream.base_url, api_key=KEY)
        return DeploymentFactory(name="far", elsewhere=True, remote=server, remote_model=MODEL)

    return await database_hop(make)


async def test_a_remote_server_is_looked_at(
    deployment: Deployment, upstream: Upstream, paths: AgentPaths
) -> None:
    async with running_agent(paths):
        process = await ready(epoch=1)
        assert (process.name, process.pid, process.socket_path) == ("far-0", None, "")
        assert process.ping_ms is not None and process.last_pong_at is not None
        assert (process.info["backend"], process.info["model"]) == ("remote", MODEL)
        assert KEY not in str(process.info)
        assert upstream.headers[0]["Authorization"] == f"Bearer {KEY}"
        [endpoint] = await database_hop(replica_endpoints)
        assert endpoint.remote is not None and endpoint.remote.base_url == upstream.base_url
        [card] = [
            deployment_card(each, route_names=(), now=timezone.now())
            for each in await database_hop(deployments_all)
        ]
        assert (card.label, card.model) == ("Ready", f"{MODEL} at {deployment.remote}")

        before = (await database_hop(change_stamps))["replicas"]
        upstream.models = ("another",)
        process = await process_when("it to be missed", lambda p: p.state == "unresponsive")
        assert "has no model 'their-model'; it has: another" in process.last_error
        assert await database_hop(replica_endpoints) == []
        assert (await database_hop(change_stamps))["replicas"] > before
        upstream.models = (MODEL,)
        process = await ready(epoch=1)
        assert process.last_error == ""
    process = await process_when("it to be left", lambda p: p.state == "stopped")
    assert await database_hop(replica_endpoints) == []


async def test_a_change_is_looked_at_anew_and_a_stop_is_one(
    deployment: Deployment, paths: AgentPaths
) -> None:
    async with running_agent(paths):
        await ready(epoch=1)
        server = deployment.remote
        assert server is not None
        await database_hop(remote_server_update, server=server, actor=SYSTEM, max_concurrency=2)
        await ready(epoch=2)
        await database_hop(deployment_stop, deployment=deployment, actor=SYSTEM)
        await process_when("it to be stopped", lambda p: p.state == "stopped")
        await database_hop(deployment_start, deployment=deployment, actor=SYSTEM)
        await ready(epoch=3)
        await database_hop(deployment_delete, deployment=deployment, actor=SYSTEM)

        async def is_gone() -> bool:
            return not await database_hop(EngineProcess.objects.exists)

        await wait_until_async("its row to go", is_gone)


async def test_why_it_cannot_be_asked_is_said(
    deployment: Deployment, paths: AgentPaths, settings: Any
) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = []
    async with running_agent(paths):
        process = await process_when("the refusal", lambda p: p.last_error != "")
        assert process.state == "unresponsive"
        assert "127.0.0.1 is not a public address" in process.last_error
        settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
        await ready(epoch=1)


async def test_one_lost_look_is_no_outage(
    deployment: Deployment, upstream: Upstream, paths: AgentPaths
) -> None:
    async with running_agent(paths):
        await ready(epoch=1)
        n_before = len(upstream.headers)
        upstream.models = ()
        await wait_until_async("a look in vain", lambda: _of(len(upstream.headers) > n_before))
        upstream.models = (MODEL,)
        n_before = len(upstream.headers)
        await wait_until_async("more looks", lambda: _of(len(upstream.headers) > n_before + 3))
        process = await ready(epoch=1)
        assert process.last_error == ""


async def _of(value: bool) -> bool:
    return value
