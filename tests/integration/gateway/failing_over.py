"""Routes to several real engines, which tests may kill."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from apps.core.hop import database_hop
from apps.core.models import ChangeStamp
from apps.deployments.models import Deployment
from apps.metering.models import UsageRecord
from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.processes import EngineRun, running_engine
from tests.rows import all_of
from tests.waiting import wait_until


@contextmanager
def engines(model_dir: Path, *names: str) -> Iterator[dict[str, EngineRun]]:
    """Run an engine of its own under each name; one that was killed is no failure."""
    with ExitStack() as stack:
        runs = {}
        for name in names:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            run = running_engine(model_dir, directory, "--dtype", "float32")
            runs[name] = stack.enter_context(run)
        yield runs


def deployed(name: str, *runs: EngineRun, **fields: object) -> Deployment:
    """Make the rows of a deployment whose replicas are these engines."""
    deployment: Deployment = DeploymentFactory(name=name, n_replicas=len(runs) or 1, **fields)
    for index, run in enumerate(runs):
        process = EngineProcessFactory(
            ready=True,
            name=f"{name}-{index}",
            epoch=run.epoch,
            socket_path=str(run.socket_path),
        )
        ReplicaFactory(deployment=deployment, index=index, engine_process=process)
    return deployment


def said() -> None:
    """Tell every process that the routes are other ones."""
    for stamp in ("routes", "replicas", "access"):
        # Never a value of an earlier test, which a shared runtime may have seen.
        ChangeStamp.objects.update_or_create(name=stamp, defaults={"value": time.time_ns()})


def kill(run: EngineRun) -> None:
    os.kill(run.process.pid, signal.SIGKILL)
    wait_until("the killed engine to be gone", lambda: run.process.poll() is not None)


async def rows() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))
