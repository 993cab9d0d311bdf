"""`kill -9` of the engine agent at each step of a replica's life: the next agent reaches what is
desired, and rows, processes and files say the same."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.audit.types import SYSTEM
from apps.deployments.models import Deployment, Replica
from apps.deployments.services import (
    deployment_delete,
    deployment_restart,
    deployment_scale,
    deployment_stop,
)
from apps.engines.models import EngineProcess
from apps.engines.paths import agent_paths
from tests.factories import DeploymentFactory, ModelVersionFactory
from tests.models import random_llama_dir
from tests.processes import ROOT, server_environment
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.e2e,
    pytest.mark.timeout(600),
]

START_S = 120.0
# An agent that kills itself at a step, its engines frozen or killed before if so told.
AGENT = """
import os, signal, sys
import django; django.setup()
import psutil
from django.core.management import call_command
from apps.deployments import reconciler
from apps.deployments.models import Deployment
from apps.engines.supervisor import Supervisor

STEP, ENGINES = sys.argv[1:]
reconcile, record = reconciler.replicas_reconcile, reconciler.observations_record
take, start = reconciler.engine_epoch_take, Supervisor._process_start

def at(step, is_there=True):
    if step == STEP and is_there:
        for engine in psutil.Process().children():
            {"run": lambda: None, "freeze": engine.suspend, "kill": engine.kill}[ENGINES]()
        os.kill(os.getpid(), signal.SIGKILL)

def reconciling(**fields):
    at("scaled", Deployment.objects.filter(scaled_at__isnull=False).exists())
    found = reconcile(**fields)
    at("placed", found.specs)
    at("leaving", found.leaving)
    return found

def taking(process_id):
    epoch = take(process_id)
    at("counted")
    at("replaced", epoch > 1)
    return epoch

async def starting(self, socket):
    process = await start(self, socket)
    at("spawned")
    return process

def recording(seen, **fields):
    states = {each.state for each in seen if each.epoch}
    at("answered", "ready" in states)
    at("ended", "stopped" in states)
    record(seen, **fields)
    at("loading", "starting" in states)
    at("ready", "ready" in states)
    at("draining", "draining" in states)

reconciler.replicas_reconcile, reconciler.observations_record = reconciling, recording
reconciler.engine_epoch_take, Supervisor._process_start = taking, starting
call_command("run_engines", "--exit-with-parent")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A VAR of its own, and what runs and lies there."""

    var: Path
    run_dir: Path
    environment: dict[str, str]

    def engines(self) -> dict[int | None, str]:
        """The socket of each engine process, by its pid."""
        found: dict[int | None, str] = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            sockets = [word for word in words if word.startswith(f"{self.run_dir}/")]
            if sockets and "engine_service" in words:
                found[process.pid] = sockets[0]
        return found

    @contextlib.contextmanager
    def agent(self, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run an agent; it ends with the block, and by SIGTERM as a service manager would."""
        log = (self.var.parent / "agent.log").open("ab")
        with (
            log,
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            ) as agent,
        ):
            try:
                yield agent
                agent.terminate()
                agent.wait(timeout=60)
            finally:
                agent.kill()

    def kill_at(
        self, step: str, *, engines: str = "run", when_ready: Callable[[], object] | None = None
    ) -> None:
        """Have an agent die at a step; ``when_ready`` is what leads there once all is ready."""
        with self.agent("-c", AGENT, step, engines) as doomed:
            if when_ready is not None:
                wait_until("all to be ready", all_ready, timeout_s=START_S)
                when_ready()
            assert doomed.wait(timeout=START_S) == -signal.SIGKILL


def all_ready() -> bool:
    states = set(EngineProcess.objects.values_list("state", flat=True))
    return states == {"ready"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("models"), max_position_embeddings=512)


@pytest.fixture
def place(tmp_path: Path, model_dir: Path) -> Iterator[Place]:
    var = tmp_path / "var"
    run_dir = agent_paths(var).run_dir
    found = Place(
        var=var,
        run_dir=run_dir,
        environment={
            **os.environ,
            **server_environment(),
            "VAR": str(var),
            "MODELS_DIR": str(model_dir.parent),
            "ENGINE_PING_DEADLINE_S": "60",  # a busy machine is no fault here
        },
    )
    yield found
    for pid in found.engines():
        psutil.Process(pid).kill()  # only where the test has failed
    shutil.rmtree(run_dir, ignore_errors=True)


@pytest.fixture
def deployment(settings: Any, model_dir: Path) -> Deployment:
    settings.MODELS_DIR = model_dir.parent
    version = ModelVersionFactory(path=model_dir.name)
    return DeploymentFactory(
        name="tiny", model_version=version, kv_cache_tokens=512, dtype="float32"
    )


def differences(place: Place, states: dict[str, str]) -> list[object]:
    """Say what of rows, processes and files is not as it should be in these states."""
    rows = list(EngineProcess.objects.all())
    placed = Replica.objects.filter(devices__isnull=False, refusal="")
    journals = {path.name.rpartition("-")[0] for path in (place.var / "journal").glob("*.live")}
    alive = [row for row in rows if row.pid is not None]
    pairs: list[tuple[object, object]] = [
        ({row.name: row.state for row in rows}, states),
        ({row.pid: row.socket_path for row in alive}, place.engines()),
        ({row.socket_path for row in alive}, {str(path) for path in place.run_dir.iterdir()}),
        ({f"e{row.pk}-{row.epoch}" for row in alive}, journals),
        ({row.name for row in alive}, {name for name in states if states[name] == "ready"}),
        ({row.name for row in rows if row.stats}, {row.name for row in alive}),
        (set(placed.values_list("engine_process__name", flat=True)), set(states)),
        (
            {path.name for path in place.var.iterdir()} - {"run"},
            {"agent.lock", "journal", "logs"},
        ),
    ]
    return [pair for pair in pairs if pair[0] != pair[1]]


def check_next_agent(place: Place, states: dict[str, str]) -> None:
    """Run the real agent until everything is as it should be and nothing of before is left, and end
    it: nothing at all is left then."""
    before = place.engines().keys()

    def is_done() -> bool:
        return not before & place.engines().keys() and not differences(place, states)

    with place.agent("manage.py", "run_engines", "--exit-with-parent"):
        with contextlib.suppress(AssertionError):  # the differences say more
            wait_until("it", is_done, timeout_s=START_S)
        assert not before & place.engines().keys()
        assert differences(place, states) == []
    assert differences(place, dict.fromkeys(states, "stopped")) == []


prove = pytest.mark.prove


@pytest.mark.parametrize(
    ("step", "engines"),
    [
        pytest.param("placed", "run", marks=prove),
        pytest.param("counted", "run", marks=prove),
        pytest.param("spawned", "run", marks=prove),
        ("spawned", "freeze"),
        pytest.param("loading", "run", marks=prove),
        pytest.param("loading", "freeze", marks=prove),
        pytest.param("answered", "kill", marks=prove),
        ("answered", "run"),
        pytest.param("ready", "run", marks=prove),
        pytest.param("ready", "kill", marks=prove),
        pytest.param("ready", "freeze", marks=prove),
    ],
)
def test_it_dies_while_an_engine_starts(
    place: Place, deployment: Deployment, step: str, engines: str
) -> None:
    """An engine ends with its agent; a frozen one does not notice, one that is killed leaves its
    socket."""
    place.kill_at(step, engines=engines)
    assert len(place.engines()) <= 1
    check_next_agent(place, {"tiny-0": "ready"})


@pytest.mark.parametrize(
    ("step", "change", "states"),
    [
        ("draining", deployment_stop, {"tiny-0": "stopped"}),
        ("ended", deployment_stop, {"tiny-0": "stopped"}),
        ("draining", deployment_restart, {"tiny-0": "ready"}),
        ("replaced", deployment_restart, {"tiny-0": "ready"}),
        ("draining", deployment_delete, {}),
        ("ended", deployment_delete, {}),
    ],
)
@prove
def test_it_dies_while_an_engine_ends(
    place: Place, deployment: Deployment, step: str, change: Any, states: dict[str, str]
) -> None:
    place.kill_at(step, when_ready=lambda: change(deployment=deployment, actor=SYSTEM))
    check_next_agent(place, states)
    if states.get("tiny-0") == "ready":
        assert Replica.objects.get().placed_generation == 2


@pytest.mark.parametrize(
    ("step", "engines"),
    [
        pytest.param("scaled", "run", marks=prove),
        ("leaving", "run"),
        pytest.param("leaving", "freeze", marks=prove),
        pytest.param("draining", "run", marks=prove),
        pytest.param("ended", "run", marks=prove),
    ],
)
def test_it_dies_while_one_replica_of_two_goes(
    place: Place, deployment: Deployment, step: str, engines: str
) -> None:
    Deployment.objects.update(max_replicas=2, n_replicas=2)

    def scale() -> None:
        deployment_scale(deployment_id=deployment.pk, n_replicas=1, because="Quiet.", actor=SYSTEM)

    place.kill_at(step, engines=engines, when_ready=scale)
    check_next_agent(place, {"tiny-0": "ready"})


@prove
@pytest.mark.parametrize("second", ["placed", "loading", "ready"])
def test_the_next_one_dies_too(place: Place, deployment: Deployment, second: str) -> None:
    """What the first has left, frozen, no row knows any more when the third comes."""
    place.kill_at("ready", engines="freeze")
    place.kill_at(second, engines="kill")
    assert len(place.engines()) == 1
    check_next_agent(place, {"tiny-0": "ready"})
