"""`kill -9` of the worker at each step of a verification: it is taken up again, and neither an
engine nor a file of it is left."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from django.utils import timezone

from apps.audit.types import Actor
from apps.registry.models import VerificationRun
from apps.registry.services import verification_ask
from apps.verification.scratch import scratch_sweep
from apps.verification.worker import work
from tests.integration.verification.conftest import MakeVersion, engines_of, fresh
from tests.processes import ROOT, server_environment
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

# A worker that halts when it has come to a step, until it is killed.
WORKER = """
import asyncio, os, signal, sys
import django
django.setup()
from apps.verification import probes, scratch, worker

def halt(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGSTOP)

async def loading(agent, paths):
    while not any(seen.pid for seen in agent.observations()):
        await agent.changed.wait()
    halt()

match sys.argv[1]:
    case "files": worker.files_check = halt
    case "loading": scratch._ready = loading
    case "answers": probes.answers_check = halt
    case "perplexity": probes.perplexity_measure = halt
    case "latency": probes.latency_measure = halt
asyncio.run(worker.work())
"""


@contextlib.contextmanager
def worker_at(step: str, var: Path) -> Iterator[None]:
    """A worker that has come to this step and stands there; killed when the block ends."""
    environment = {
        **os.environ, **server_environment(), "VAR": str(var), "VERIFY_LEASE_S": "2",
        "MODELS_DIR": str(var / "models"),
    }  # fmt: skip
    log = var / "worker.log"
    with log.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, step],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )

    def stands() -> bool:
        assert worker.poll() is None, log.read_text()[-2000:]
        return psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED

    try:
        wait_until(f"the worker to be at {step}", stands, timeout_s=120)
        yield
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize(
    ("step", "is_engine_frozen"),
    [
        ("files", False),
        ("loading", False),
        ("loading", True),
        pytest.param("answers", False, marks=pytest.mark.prove),
        pytest.param("perplexity", False, marks=pytest.mark.prove),
        ("latency", False),
    ],
)
def test_a_killed_worker_leaves_nothing_and_the_next_one_finishes(
    make_version: MakeVersion,
    even_llama_dir: Path,
    actor: Actor,
    var: Path,
    step: str,
    is_engine_frozen: bool,
) -> None:
    """A frozen engine does not see that its worker is gone: the sweep ends it."""
    version = make_version(even_llama_dir)
    run = verification_ask(version=version, actor=actor, is_waking=False)
    with worker_at(step, var):
        assert fresh(run).status == "running"
        assert len(engines_of(var)) == (step != "files")
        if is_engine_frozen:
            for pid in engines_of(var):
                os.kill(pid, signal.SIGSTOP)
    assert fresh(run).status == "running"
    scratch_sweep(var)
    assert engines_of(var) == []
    assert list(var.glob("scratch/*/")) == []

    wait_until("the lease to end", lambda: _is_over(run), timeout_s=20)
    asyncio.run(work())
    ended = fresh(run)
    assert (ended.status, ended.attempt, ended.version.stage) == ("passed", 2, "verified")


def _is_over(run: VerificationRun) -> bool:
    until = fresh(run).lease_until
    return until is not None and until < timezone.now()


def test_an_engine_ends_with_its_worker_without_a_sweep(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path
) -> None:
    version = make_version(even_llama_dir)
    verification_ask(version=version, actor=actor, is_waking=False)
    with worker_at("loading", var):
        (pid,) = engines_of(var)
    wait_until("the engine to end", lambda: not psutil.pid_exists(pid), timeout_s=60)
    assert scratch_sweep(var) == 1
    VerificationRun.objects.all().delete()
