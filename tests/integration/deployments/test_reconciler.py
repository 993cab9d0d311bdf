"""The engine agent in this process, with the real engine and a tiny model: from a row to a process
and back."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import OperationalError
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.deployments import reconciler as reconciler_module
from apps.deployments.models import Deployment, Replica
from apps.deployments.reconciler import Reconciler
from apps.deployments.selectors import replica_endpoints
from apps.deployments.services import (
    deployment_delete,
    deployment_restart,
    deployment_stop,
    deployment_update,
)
from apps.engines.client import EngineClient
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths, agent_paths
from apps.engines.policy import Timings
from apps.metering.models import UsageRecord
from tests.factories import DeploymentFactory, ModelVersionFactory, UsageRecordFactory
from tests.models import random_llama_dir
from tests.processes import ROOT, server_environment
from tests.rows import all_of
from tests.waiting import wait_until, wait_until_async

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

START_S = 60.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("models"), max_position_embeddings=512)


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[AgentPaths]:
    found = agent_paths(tmp_path)
    yield found
    if found.run_dir.exists():
        assert list(found.run_dir.iterdir()) == [], "a socket file was left"
        shutil.rmtree(found.run_dir)


@pytest.fixture
def deployment(settings: Any, model_dir: Path) -> Deployment:
    settings.MODELS_DIR = model_dir.parent
    version = ModelVersionFactory(path=model_dir.name)
    return DeploymentFactory(
        name="tiny", model_version=version, kv_cache_tokens=512, dtype="float32"
    )


@contextlib.asynccontextmanager
async def running_agent(
    paths: AgentPaths, timings: Timings | None = None
) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(paths=paths, timings=timings or Timings())
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        reconciler.stop()
        await asyncio.wait_for(task, 30)


async def process_when(
    what: str, check: Callable[[EngineProcess], bool], *, timeout_s: float = START_S
) -> EngineProcess:
    """Wait for the one engine process to be so."""

    def read() -> EngineProcess | None:
        process = EngineProcess.objects.first()
        return process if process is not None and check(process) else None

    found = await wait_until_async(what, lambda: database_hop(read), timeout_s=timeout_s)
    assert found is not None
    return found


async def ready(*, epoch: int) -> EngineProcess:
    return await process_when(
        f"epoch {epoch} to be ready", lambda p: (p.state, p.epoch) == ("ready", epoch)
    )


async def test_an_engine_follows_its_deployment(deployment: Deployment, paths: AgentPaths) -> None:
    async with running_agent(paths):
        first = await ready(epoch=1)
        assert psutil.pid_exists(first.pid or 0)
        assert first.info["architecture"] == "LlamaForCausalLM"
        assert first.stats["n_blocks_free"] == first.stats["n_blocks_total"] == 32
        assert first.started_at and first.ready_at and first.started_at < first.ready_at
        (endpoint,) = await database_hop(replica_endpoints)
        assert (endpoint.epoch, endpoint.socket_path) == (1, first.socket_path)

        await database_hop(
            deployment_update, deployment=deployment, actor=SYSTEM, kv_cache_tokens=256
        )
        second = await ready(epoch=2)
        assert second.pid != first.pid
        assert second.stats["n_blocks_total"] == 16

        await database_hop(deployment_stop, deployment=deployment, actor=SYSTEM)
        stopped = await process_when("it to stop", lambda p: p.state == "stopped")
        assert (stopped.pid, stopped.socket_path, stopped.stats) == (None, "", {})
        assert not psutil.pid_exists(second.pid or 0)
        assert await database_hop(replica_endpoints) == []

        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        third = await ready(epoch=3)
        await database_hop(deployment_delete, deployment=deployment, actor=SYSTEM)
        await wait_until_async(
            "its rows to go", lambda: database_hop(lambda: not EngineProcess.objects.exists())
        )
        assert not psutil.pid_exists(third.pid or 0)
        assert not await database_hop(Replica.objects.exists)


async def test_a_killed_engine_comes_back_and_the_gateways_are_told(
    deployment: Deployment, paths: AgentPaths
) -> None:
    async with running_agent(paths):
        first = await ready(epoch=1)
        before = (await database_hop(change_stamps))["replicas"]
        os.kill(first.pid or 0, signal.SIGKILL)
        second = await ready(epoch=2)
        assert second.last_error == "killed by SIGKILL"
        assert second.n_restarts == 1
        assert (await database_hop(change_stamps))["replicas"] == before + 2


async def test_epochs_go_on_over_agents(deployment: Deployment, paths: AgentPaths) -> None:
    for epoch in (1, 2):
        async with running_agent(paths):
            await ready(epoch=epoch)
    left = await process_when("the last word", lambda p: p.state == "stopped")
    assert (left.epoch, left.pid) == (2, None)


async def test_a_model_that_cannot_be_loaded_fails_once_and_again_when_told(
    deployment: Deployment, paths: AgentPaths, settings: Any
) -> None:
    models_dir, settings.MODELS_DIR = settings.MODELS_DIR, paths.log_dir / "nowhere"
    async with running_agent(paths):
        failed = await process_when("it to fail", lambda p: p.state == "failed")
        assert failed.last_error.startswith("exit code 78: ")
        assert "nowhere" in failed.last_error
        assert (failed.epoch, failed.n_restarts, failed.pid) == (1, 0, None)
        settings.MODELS_DIR = models_dir
        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        await ready(epoch=2)


async def test_requests_whose_gateway_is_gone_are_closed(
    paths: AgentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "_SWEEP_EVERY_S", 0.0)
    now = timezone.now()
    await database_hop(
        UsageRecordFactory, state="reserved", outcome="", settled_at=None, expires_at=now
    )
    async with running_agent(paths):
        outcome = await wait_until_async(
            "the row to be closed",
            lambda: database_hop(lambda: all_of(UsageRecord).get().outcome),
        )
    assert outcome == "interrupted"


async def test_engines_outlive_a_database_that_is_away(
    deployment: Deployment, paths: AgentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_agent(paths) as agent:
        first = await ready(epoch=1)

        def away() -> dict[str, int]:
            raise OperationalError("no database")

        with monkeypatch.context() as patch:
            patch.setattr(reconciler_module, "change_stamps", away)
            await wait_until_async("the agent to notice", lambda: agent._is_database_away)
            client = EngineClient(first.socket_path, name="test")
            await client.connect()
            assert (await client.ping(5)).epoch == 1
            await client.close()
        await wait_until_async("the agent to go on", lambda: not agent._is_database_away)
        assert (await ready(epoch=1)).pid == first.pid


@pytest.fixture
def hanging(paths: AgentPaths) -> Iterator["subprocess.Popen[bytes]"]:
    """What looks like an engine of an earlier agent and notices nothing any more."""
    socket = paths.run_dir / "e1-1.sock"
    socket.touch()
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code, str(socket)]) as process:
        yield process
        process.kill()


async def test_an_engine_of_a_killed_agent_is_seen_off(
    deployment: Deployment,
    paths: AgentPaths,
    hanging: "subprocess.Popen[bytes]",
) -> None:
    socket = paths.run_dir / "e1-1.sock"
    row = {"state": "ready", "epoch": 1, "pid": hanging.pid, "socket_path": str(socket)}
    process = await database_hop(EngineProcess.objects.create, name="tiny-0", **row)
    await database_hop(
        Replica.objects.create, deployment=deployment, index=0, engine_process=process
    )
    async with running_agent(paths, Timings(stop_grace_s=2.0)):
        await ready(epoch=2)
        await wait_until_async("its end", lambda: hanging.poll() == -signal.SIGKILL)
        await wait_until_async("its socket to go", lambda: not socket.exists())


def test_one_agent_a_var(tmp_path: Path) -> None:
    env = {**os.environ, **server_environment(), "VAR": str(tmp_path)}
    command = [sys.executable, "manage.py", "run_engines", "--exit-with-parent"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE) as first:
        lock = tmp_path / "agent.lock"
        wait_until("the lock", lambda: lock.exists() and lock.read_text() != "", timeout_s=60)
        # One that ends with its parent would wait for a predecessor that drains.
        second = subprocess.run(
            command[:-1],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert second.returncode == 1
        assert f"another engine agent (pid {first.pid}) already works in" in second.stderr
        assert first.stdin is not None
        first.stdin.close()  # its parent is gone: it ends too
        assert first.wait(timeout=20) == 0
