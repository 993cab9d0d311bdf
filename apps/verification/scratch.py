"""An engine for one verification: in a directory of its own with its own socket, journal and log,
and gone with whoever started it. Whatever a killed worker leaves is swept by the next one."""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from apps.core.files import log_tail, var_lock
from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineClientError
from apps.engines.services import (
    AgentPaths,
    EngineAgent,
    Timings,
    agent_paths,
    is_ready,
    processes_serving,
)
from apps.engines.types import EngineInfo, EngineObservation, EngineSpec
from apps.verification.exceptions import VerificationFailed

_TIMINGS: Final = Timings(drain_s=0.5, stop_grace_s=5.0, ping_deadline_s=30.0)
_SLOT: Final = 1  # the one slot of an agent of its own
_NAME: Final = "scratch"
_LOG_LINES: Final = 40
_GOING: Final = frozenset({"starting", "ready", "stopped"})
_GONE_WITHIN_S: Final = 10.0
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchEngine:
    """load_s: from its start until it answered."""

    client: EngineClient
    info: EngineInfo
    load_s: float


def scratch_dir(var_dir: Path) -> Path:
    """Return where the directories of scratch engines are; makes nothing."""
    return var_dir / "scratch"


@contextlib.asynccontextmanager
async def scratch_engine(
    model_dir: Path, *, var_dir: Path, name: str, arguments: tuple[str, ...] = ()
) -> AsyncIterator[ScratchEngine]:
    """Run an engine of a model until the block ends, however it ends.

    Raises:
        VerificationFailed: it does not start; carries the end of its log.
    """
    with _place(var_dir, name) as paths:
        agent = EngineAgent(paths=paths, take_epoch=_one, timings=_TIMINGS)
        try:
            started_s = time.monotonic()
            spec = EngineSpec(
                process_id=_SLOT,
                name=_NAME,
                revision=1,
                arguments=("--model", str(model_dir), *arguments),
            )
            agent.desired_set([spec])
            observation = await _ready(agent, paths)
            client = EngineClient(observation.socket_path, name="verification")
            try:
                info = await client.connect()
                load_s = time.monotonic() - started_s
                yield ScratchEngine(client=client, info=info, load_s=load_s)
            except EngineClientError as error:
                raise VerificationFailed(f"The engine failed: {error}", log=_log(paths)) from error
            finally:
                await client.close()
        finally:
            # Nobody waits for an answer of it: it need not drain.
            agent.kill()
            await agent.stop()


async def _one(process_id: int) -> int:
    return 1


async def _ready(agent: EngineAgent, paths: AgentPaths) -> EngineObservation:
    while True:
        for seen in agent.observations():
            if is_ready(seen):
                return seen
            if seen.state not in _GOING:
                raise VerificationFailed(
                    f"The engine does not start: {seen.last_error}", log=_log(paths)
                )
        await agent.changed.wait()


def _log(paths: AgentPaths) -> str:
    return "\n".join(log_tail(paths.log(_NAME), n_lines=_LOG_LINES))


@contextlib.contextmanager
def _place(var_dir: Path, name: str) -> Iterator[AgentPaths]:
    """A directory whose lock says that somebody is at work in it; removed at the end."""
    directory = scratch_dir(var_dir) / name
    with _sweeping(var_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock:
        try:
            yield agent_paths(directory)
        finally:
            _remove(directory)


def scratch_sweep(var_dir: Path) -> int:
    """End and remove what workers that are gone have left; return how many directories."""
    if not scratch_dir(var_dir).is_dir():
        return 0
    n_swept = 0
    with _sweeping(var_dir):
        for directory in sorted(scratch_dir(var_dir).glob("*/")):
            with (directory / "lock").open("a") as lock:
                if _is_free(lock):
                    _engines_end(agent_paths(directory).run_dir)
                    _remove(directory)
                    n_swept += 1
    return n_swept


@contextlib.contextmanager
def _sweeping(var_dir: Path) -> Iterator[None]:
    """So that nobody sweeps a directory between its making and its lock."""
    file = scratch_dir(var_dir) / ".sweeping"
    with var_lock(file, holder="sweeper of scratch engines", wait_s=2 * _GONE_WITHIN_S):
        yield


def _is_free(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(directory: Path) -> None:
    shutil.rmtree(agent_paths(directory).run_dir)  # may lie elsewhere, where VAR's path is long
    shutil.rmtree(directory)


def _engines_end(run_dir: Path) -> None:
    """Kill what serves a socket there: it is known by the path on its command line."""
    until_s = time.monotonic() + _GONE_WITHIN_S
    while (serving := processes_serving(run_dir)) and time.monotonic() < until_s:
        for process in serving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(_LOOK_S)
