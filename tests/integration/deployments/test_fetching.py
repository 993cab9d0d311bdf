"""The engine agent with a real object storage: a version's files are fetched, checked and kept, and
a real engine serves them."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.types import SYSTEM, Actor
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.deployments.models import Deployment
from apps.deployments.reconciler import Reconciler
from apps.deployments.selectors import deployments_with_replicas, live_state
from apps.deployments.services import deployment_restart, deployment_stop
from apps.engines.client import EngineClient, SamplingParams, TextPrompt
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths, agent_paths
from apps.engines.policy import Timings
from apps.registry.models import ModelVersion
from apps.registry.services import import_model
from tests.factories import DeploymentFactory
from tests.object_storage import KEYS, ObjectStorage
from tests.processes import ROOT, server_environment
from tests.waiting import wait_until, wait_until_async
from tests.wide_model import wide_model_dir

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

START_S = 90.0
WEIGHTS = "model.safetensors"
Version = Callable[..., ModelVersion]


@pytest.fixture
def paths(tmp_path: Path, settings: Any) -> AgentPaths:
    settings.MODELS_DIR = tmp_path / "models"
    settings.NODE_CACHE_DIR = tmp_path / "node-cache"
    settings.NODE_CACHE_BYTES = 1 << 30
    return agent_paths(tmp_path)


@pytest.fixture
def make(paths: AgentPaths, object_storage: ObjectStorage, tmp_path: Path, actor: Actor) -> Version:
    """Import a version of some megabytes to the storage, and have it deployed."""

    def made(name: str, *, seed: int = 0, n_replicas: int = 1) -> ModelVersion:
        source = wide_model_dir(tmp_path, seed=seed)
        version = import_model(name=name, source_path=source, actor=actor)
        DeploymentFactory(
            name=name, model_version=version, kv_cache_tokens=512, dtype="float32",
            min_replicas=n_replicas, max_replicas=n_replicas, n_replicas=n_replicas,
        )  # fmt: skip
        return version

    return made


@contextlib.asynccontextmanager
async def running_agent(paths: AgentPaths) -> AsyncIterator[None]:
    reconciler = Reconciler(paths=paths, timings=Timings(backoff_most_s=1.0))
    task = asyncio.create_task(reconciler.run())
    try:
        yield
    finally:
        reconciler.stop()
        await asyncio.wait_for(task, 30)


async def process_when(
    what: str, check: Callable[[EngineProcess], bool], *, name: str = "wide-0"
) -> EngineProcess:
    seen: list[str] = []

    def read() -> EngineProcess | None:
        process = EngineProcess.objects.filter(name=name).first()
        seen[:] = [] if process is None else [f"{process.state}: {process.last_error}"]
        return process if process is not None and check(process) else None

    try:
        found = await wait_until_async(what, lambda: database_hop(read), timeout_s=START_S)
    except AssertionError as error:
        raise AssertionError(f"{error} ({seen})") from None
    assert found is not None
    return found


async def ready(name: str = "wide-0") -> EngineProcess:
    return await process_when(f"{name} to be ready", lambda p: p.state == "ready", name=name)


async def answers(process: EngineProcess) -> None:
    client = EngineClient(process.socket_path, name="test", expected_epoch=process.epoch)
    await client.connect()
    request_id = new_id("test")
    prepared = await client.prepare(
        request_id=request_id,
        prompt=TextPrompt(text="the way"),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_tokens=4,
        cache_salt="test",
        timeout_s=30,
    )
    stream = await client.start(request_id, prepared.max_new_tokens)
    async for _ in stream:
        pass
    assert stream.n_completion_tokens == 4
    await client.close()


def cached(settings: Any) -> set[str]:
    found = Path(settings.NODE_CACHE_DIR).glob("*/")
    return {path.name for path in found} - {"locks"}


async def test_two_replicas_fetch_once_and_a_restart_not_at_all(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage, settings: Any
) -> None:
    version = await database_hop(make, "wide", n_replicas=2)
    async with running_agent(paths):
        for name in ("wide-0", "wide-1"):
            process = await ready(name)
            assert process.fetch_said == ""
            await answers(process)
    assert object_storage.gets(WEIGHTS) == [200]
    assert cached(settings) == {version.manifest_sha256}
    assert not list((paths.run_dir).iterdir())
    object_storage.gate.shut()  # what is here needs no storage
    async with running_agent(paths):
        await answers(await ready())
    assert object_storage.gets(WEIGHTS) == [200]


async def test_how_far_it_is_can_be_seen_and_a_stop_ends_it(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage
) -> None:
    version = await database_hop(make, "wide")
    object_storage.gate.hold(2 << 20)
    async with running_agent(paths):
        process = await process_when("a part to be there", lambda p: (p.n_fetched_bytes or 0) > 0)
        assert (process.state, process.n_fetch_bytes) == ("fetching", version.size_bytes)
        said = process.fetch_said.replace("\xa0", " ")
        assert said.endswith(f" of {version.size_bytes / 2**20:.1f} MB fetched")
        (deployment,) = await database_hop(deployments_with_replicas)
        assert live_state(deployment).word == "Starting"
        html = await database_hop(_page, deployment)
        assert " MB fetched" in html.replace("\xa0", " ")
        await database_hop(deployment_stop, deployment=deployment, actor=SYSTEM)
        stopped = await process_when("it to stop", lambda p: p.state == "stopped")
        assert (stopped.n_fetched_bytes, stopped.epoch) == (None, 0)
        object_storage.gate.open()


def _page(deployment: Deployment) -> str:
    from tests.factories import UserFactory

    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    return client.get(url).content.decode()


@pytest.fixture
def agent_process(
    paths: AgentPaths, object_storage: ObjectStorage, tmp_path: Path, settings: Any
) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts agents in processes of their own, as they run."""
    environment = {
        **os.environ,
        **server_environment(),
        "VAR": str(tmp_path),
        "NODE_CACHE_DIR": str(settings.NODE_CACHE_DIR),
    }
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        with (tmp_path / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "run_engines"],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def test_an_agent_that_is_killed_in_the_middle_goes_on_where_it_was(
    make: Version,
    object_storage: ObjectStorage,
    agent_process: "Callable[[], subprocess.Popen[bytes]]",
    settings: Any,
) -> None:
    version = make("wide")
    object_storage.gate.hold(2 << 20)
    first = agent_process()
    partial = Path(settings.NODE_CACHE_DIR) / f"{version.manifest_sha256}.partial" / WEIGHTS
    wait_until(
        "a part to be there",
        lambda: partial.exists() and partial.stat().st_size > 1 << 20,
        timeout_s=60,
    )
    first.send_signal(signal.SIGKILL)
    first.wait()
    object_storage.gate.open()
    agent_process()
    process = wait_until(
        "the engine to be ready",
        lambda: EngineProcess.objects.filter(state="ready").first(),
        timeout_s=START_S,
    )
    assert process is not None
    asyncio.run(answers(process))
    assert object_storage.gets(WEIGHTS) == [200, 206]
    assert cached(settings) == {version.manifest_sha256}


async def test_wrong_bytes_start_nothing_and_are_said(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage, settings: Any
) -> None:
    version = await database_hop(make, "wide")
    key = f"{version.path}/{WEIGHTS}"
    right = object_storage.read(key)
    object_storage.write(key, right[:-1] + bytes([right[-1] ^ 1]))
    async with running_agent(paths):
        failed = await process_when("it to fail", lambda p: p.state == "failed")
        said = f"{WEIGHTS} in the artifact storage was altered"
        assert failed.last_error.startswith(said)
        assert (failed.pid, failed.epoch, failed.n_restarts) == (None, 0, 0)
        (deployment,) = await database_hop(deployments_with_replicas)
        assert live_state(deployment).word == "Failed"
        assert said in await database_hop(_page, deployment)
        assert version.manifest_sha256 not in cached(settings)
        object_storage.write(key, right)
        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        await answers(await ready())


async def test_while_the_storage_is_away_what_runs_goes_on_and_what_waits_comes_up_later(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage
) -> None:
    await database_hop(make, "wide")
    async with running_agent(paths):
        running = await ready()
        await database_hop(make, "other", seed=1)
        object_storage.gate.shut()
        await database_hop(_bumped)
        waiting = await process_when(
            "it to say so",
            lambda p: p.state == "backing_off" and bool(p.last_error),
            name="other-0",
        )
        assert waiting.last_error.startswith("The artifact storage does not answer: ")
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in waiting.last_error
        assert (waiting.pid, waiting.epoch) == (None, 0)
        same = await ready()
        assert (same.pid, same.epoch, same.n_restarts) == (running.pid, 1, 0)
        await answers(same)
        object_storage.gate.open()
        late = await ready("other-0")
        await answers(late)
        assert (late.n_restarts, late.epoch, late.last_error) == (0, 1, "")
        assert (await ready()).pid == running.pid


def _bumped() -> None:
    """As a service would, which is not what is looked at here."""
    from apps.core.services import change_stamp_bump
    from apps.deployments.types import DEPLOYMENTS_STAMP

    change_stamp_bump(DEPLOYMENTS_STAMP)


async def test_the_bound_holds_and_what_runs_is_never_evicted(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage, settings: Any
) -> None:
    first = await database_hop(make, "wide")
    settings.NODE_CACHE_BYTES = first.size_bytes + 1000
    async with running_agent(paths):
        running = await ready()
        second = await database_hop(make, "other", seed=1)
        await database_hop(_bumped)
        waiting = await process_when(
            "it to say so",
            lambda p: p.state == "backing_off" and bool(p.last_error),
            name="other-0",
        )
        missing = second.size_bytes - 1000
        assert f"of {second.size_bytes:,} bytes {missing:,} are missing" in waiting.last_error
        await answers(await ready())
        assert cached(settings) == {first.manifest_sha256}
        assert object_storage.gets(f"{second.path}/{WEIGHTS}") == []
        stopped = await database_hop(Deployment.objects.get, name="wide")
        await database_hop(deployment_stop, deployment=stopped, actor=SYSTEM)
        await answers(await ready("other-0"))
        assert cached(settings) == {second.manifest_sha256}
        assert (await database_hop(EngineProcess.objects.get, name="wide-0")).pid != running.pid


def _rot(weights: Path) -> None:
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


async def test_files_that_rot_here_are_fetched_anew_when_it_is_restarted(
    make: Version, paths: AgentPaths, object_storage: ObjectStorage, settings: Any
) -> None:
    version = await database_hop(make, "wide")
    async with running_agent(paths):
        await ready()
    _rot(settings.NODE_CACHE_DIR / version.manifest_sha256 / WEIGHTS)
    async with running_agent(paths):
        failed = await process_when("it to fail", lambda p: p.state == "failed")
        assert "was altered" in failed.last_error
        deployment = await database_hop(Deployment.objects.get)
        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        await answers(await ready())
    assert object_storage.gets(WEIGHTS) == [200, 200]


async def test_a_directory_is_used_in_place(
    paths: AgentPaths, tmp_path: Path, actor: Actor, settings: Any
) -> None:
    source = wide_model_dir(tmp_path)
    version = await database_hop(import_model, name="wide", source_path=source, actor=actor)
    await database_hop(
        DeploymentFactory, name="wide", model_version=version, kv_cache_tokens=512, dtype="float32"
    )
    async with running_agent(paths):
        await answers(await ready())
    assert version.path == "wide/1"
    assert cached(settings) == set()
