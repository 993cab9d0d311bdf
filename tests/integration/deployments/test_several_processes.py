"""A deployment whose replica is two processes: the real agent starts them on this machine's
processor, where they add up over gloo, and they answer as one process does."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment, Replica
from apps.deployments.services import deployment_stop, deployment_update
from apps.engines.client import EngineClient, SamplingParams, TextPrompt
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths
from tests.factories import DeploymentFactory, ModelVersionFactory
from tests.integration.deployments.test_reconciler import (
    model_dir,
    paths,
    process_when,
    ready,
    running_agent,
)
from tests.integration.wire.harness import text_of
from tests.waiting import wait_until_async

__all__ = ["model_dir", "paths"]  # fixtures

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

PROMPTS = ("abc", "The sea is", "0123456789" * 6)


@pytest.fixture
def deployment(settings: Any, model_dir: Path) -> Deployment:
    settings.MODELS_DIR = model_dir.parent
    version = ModelVersionFactory(path=model_dir.name)
    return DeploymentFactory(
        name="tiny", model_version=version, kv_cache_tokens=512, device_class="cpu",
        dtype="float32",
    )  # fmt: skip


async def answers(process: EngineProcess) -> list[str]:
    """Ask for greedy answers, long enough to differ where anything does."""
    client = EngineClient(process.socket_path, name="test", expected_epoch=process.epoch)
    await client.connect()
    found = []
    try:
        for index, text in enumerate(PROMPTS):
            prepared = await client.prepare(
                request_id=f"r{index}",
                prompt=TextPrompt(text=text),
                sampling=SamplingParams(temperature=0.0, ignore_eos=True),
                max_tokens=48,
                cache_salt="",
                timeout_s=10.0,
            )
            stream = await client.start(f"r{index}", prepared.max_new_tokens)
            found.append(await text_of(stream))
    finally:
        await client.close()
    return found


async def test_two_processes_answer_as_one(deployment: Deployment, paths: AgentPaths) -> None:
    async with running_agent(paths):
        alone = await ready(epoch=1)
        assert psutil.Process(alone.pid).children() == []
        expected = await answers(alone)
        assert all(expected)

        await database_hop(
            deployment_update, deployment=deployment, actor=SYSTEM, tensor_parallel=2
        )
        both = await ready(epoch=2)
        (rank,) = psutil.Process(both.pid).children()
        assert "engine_service.runner.rank" in rank.cmdline()
        assert both.info["kernels"] == "torch"
        held = [psutil.Process(both.pid).memory_info().rss, rank.memory_info().rss]
        assert both.stats["rss_bytes"] > 0.8 * sum(held) > 1.2 * max(held)
        assert await answers(both) == expected
        replica = await database_hop(Replica.objects.get)
        (device,) = await database_hop(lambda: list(replica.devices.all()))
        assert device.kind == "cpu"

        # Half of it gone is all of it gone: the agent starts both anew.
        rank.kill()
        again = await ready(epoch=3)
        assert await answers(again) == expected
        (rank,) = psutil.Process(again.pid).children()

        await database_hop(deployment_stop, deployment=deployment, actor=SYSTEM)
        await process_when("it to stop", lambda process: process.state == "stopped")
        await wait_until_async("the rank to be gone", lambda: not rank.is_running(), timeout_s=5)
