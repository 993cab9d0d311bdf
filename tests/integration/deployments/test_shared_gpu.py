"""The real agent with two real engines that share a device, or two: these are said to be GPUs, and
the engines compute on the processor, on torch's kernels, where sleep gives memory back all the
same."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.core.hop import database_hop
from apps.deployments import reconciler as reconciler_module
from apps.deployments import reconciling as reconciling_module
from apps.deployments.models import Deployment
from apps.deployments.needs import replica_estimate
from apps.deployments.reconciler import Reconciler
from apps.engines.client import EngineClient
from apps.engines.health import EngineHealth
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths, agent_paths
from apps.engines.policy import Timings
from apps.engines.types import DeviceReport, EngineSpec, NodeReport
from tests.factories import DeploymentFactory, ModelVersionFactory
from tests.integration.wire.harness import start, text_of
from tests.models import random_llama_dir
from tests.waiting import wait_until_async

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

GIB = 2**30
START_S = 120.0
N_TOKENS = 24
TIMINGS = Timings(turn_s=0.5, shared_ping_every_s=0.05)
NAMES = ("one", "two")
# Engines that sleep by themselves would hide who is made to.
NEVER_S = 604_800


def machine_of(n_gpus: int, *, n_bytes: int) -> NodeReport:
    """A machine with host memory, and GPUs of so many bytes."""
    sizes: Any = {"kind": "cpu", "index": 0, "uid": "cpu", "name": "processor"}
    cpu = DeviceReport(**sizes, total_bytes=64 * GIB, free_bytes=64 * GIB, auto_dtype="float32")
    gpus = [
        dataclasses.replace(
            cpu, kind="cuda", index=i, uid=f"GPU-{i}", name="GPU", total_bytes=n_bytes,
            free_bytes=n_bytes,
        )
        for i in range(n_gpus)
    ]  # fmt: skip
    return NodeReport(name="box", n_cores=2, devices=(cpu, *gpus))


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[AgentPaths]:
    found = agent_paths(tmp_path)
    yield found
    if found.run_dir.exists():
        assert list(found.run_dir.iterdir()) == [], "a socket file was left"


@pytest.fixture(params=[1, 2])
def deployments(
    request: pytest.FixtureRequest,
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Deployment]:
    """Of a machine whose GPUs hold one of the two awake and both asleep."""
    model_dir = random_llama_dir(tmp_path / "models", max_position_embeddings=512)
    settings.MODELS_DIR = model_dir.parent
    spec_of = reconciling_module._engine_spec

    def on_torch(replica: Any) -> EngineSpec:
        spec = spec_of(replica)
        arguments = (*spec.arguments, "--kernels", "torch")
        return dataclasses.replace(spec, arguments=arguments)

    monkeypatch.setattr(reconciling_module, "_engine_spec", on_torch)
    found = [
        DeploymentFactory(
            name=name,
            model_version=ModelVersionFactory(path=model_dir.name),
            device_class="cuda",
            dtype="float32",
            kv_cache_tokens=512,
            sleep_after_s=NEVER_S,
            tensor_parallel=request.param,
        )
        for name in NAMES
    ]
    kept = found[0].asleep_bytes
    assert kept is not None
    need = replica_estimate(found[0], devices=()).total - kept
    n_bytes = int((2 * kept + 1.5 * need) / 0.9)
    monkeypatch.setattr(
        reconciler_module, "node_report", lambda *_: machine_of(request.param, n_bytes=n_bytes)
    )
    return found


@dataclass
class Watch:
    """Asks both engines all the time which of them has memory."""

    clients: dict[str, EngineClient]
    n_looks: int = 0
    seen_awake: set[str] = field(default_factory=set)
    both: list[tuple[EngineHealth, ...]] = field(default_factory=list)

    async def run(self) -> None:
        one, two = (self.clients[name] for name in NAMES)
        while True:
            began = time.monotonic()
            # Had one given its memory back in between, the other may have it.
            answers = [await client.ping(10.0) for client in (one, two, one)]
            if time.monotonic() - began < 0.05:
                self.n_looks += 1
                if not any(answer.is_given_back for answer in answers):
                    self.both.append(tuple(answers))
            for name, answer in zip(NAMES, answers, strict=False):
                if not answer.is_given_back:
                    self.seen_awake.add(name)
            await asyncio.sleep(0.005)


def process(name: str) -> EngineProcess:
    return EngineProcess.objects.get(name=f"{name}-0")


async def ready(name: str, *, epoch: int = 1) -> EngineProcess:
    def read() -> EngineProcess | None:
        found = EngineProcess.objects.filter(name=f"{name}-0").first()
        is_ready = found is not None and (found.state, found.epoch) == ("ready", epoch)
        return found if is_ready else None

    found = await wait_until_async(
        f"{name} to be ready", lambda: database_hop(read), timeout_s=START_S
    )
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def running_agent(paths: AgentPaths) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(paths=paths, timings=TIMINGS)
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        reconciler.stop()
        await asyncio.wait_for(task, 30)


@contextlib.asynccontextmanager
async def watched(paths: dict[str, str]) -> AsyncIterator[tuple[dict[str, EngineClient], Watch]]:
    clients = {name: EngineClient(path, name="test") for name, path in paths.items()}
    for client in clients.values():
        await client.connect()
    watch = Watch(clients)
    task = asyncio.create_task(watch.run())
    try:
        yield clients, watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for client in clients.values():
            await client.close()


async def answer(client: EngineClient, request_id: str) -> str:
    stream = await start(
        client, request_id, text="the same", max_tokens=N_TOKENS, temperature=0.0, ignore_eos=True
    )
    return await text_of(stream)


async def test_two_models_take_turns_on_their_gpus(
    deployments: list[Deployment], paths: AgentPaths
) -> None:
    async with running_agent(paths) as reconciler:
        processes = {name: await ready(name) for name in NAMES}
        sharing = reconciler._reconciled.sharing
        assert len(sharing.room_bytes) == deployments[0].tensor_parallel
        room_bytes = min(sharing.room_bytes.values())
        needs = [share.n_bytes for share in sharing.shares.values()]
        assert max(needs) <= room_bytes < sum(needs)
        first, second = sorted(processes.values(), key=lambda each: each.started_at)
        assert first.ready_at < second.started_at, "one after the other"
        sockets = {name: each.socket_path for name, each in processes.items()}
        async with watched(sockets) as (clients, watch):
            texts = {
                await answer(clients[name], f"{name}-{turn}") for turn in range(4) for name in NAMES
            }
            assert len(texts) == 1
            assert texts != {""}

            burst = [(name, f"burst-{name}-{i}") for i in range(16) for name in NAMES]
            found = await asyncio.gather(*(answer(clients[name], each) for name, each in burst))
            assert {*found} == texts, "none is lost, none is wrong"
            await says("Asleep", "Ready")
            assert watch.seen_awake == {*NAMES}
            assert watch.n_looks > 10
            assert watch.both == [], "never both"

        # Whoever is awake is killed: the other has the memory, and the first starts again after it.
        words = await said()
        awake = next(name for name in NAMES if words[name] == "Ready")
        other = next(name for name in NAMES if name != awake)
        os.kill((await database_hop(process, awake)).pid or 0, signal.SIGKILL)
        client = EngineClient(sockets[other], name="test")
        await client.connect()
        assert {await answer(client, "after")} == texts
        again = await ready(awake, epoch=2)
        async with watched({**sockets, awake: again.socket_path}) as (clients, watch):
            found = await asyncio.gather(
                *(answer(clients[name], f"again-{name}") for name in NAMES)
            )
            assert {*found} == texts
            assert watch.both == []
        await client.close()


async def said() -> dict[str, str]:
    return {name: (await database_hop(process, name)).state_said for name in NAMES}


async def says(*words: str) -> None:
    async def check() -> bool:
        return sorted((await said()).values()) == sorted(words)

    await wait_until_async(f"the agent to say {words}", check, timeout_s=10)
