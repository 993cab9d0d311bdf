"""What runs beside the server: cache, broker, worker, beat, the engine agent and its engines."""

import asyncio
import secrets
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from celery import current_app
from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.batches.selectors import is_work_waiting, is_worker_busy
from apps.console.doctor.findings import Finding, failure, ok, warning
from apps.core.files import lock_holder
from apps.core.selectors import heartbeats
from apps.core.services import BEAT, WORKER
from apps.deployments.selectors import deployments_running, deployments_with_replicas
from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineClientError
from apps.engines.selectors import engine_sockets

if TYPE_CHECKING:
    from apps.engines.models import EngineProcess

_ENGINE_TIMEOUT_S: Final = 4.0
# Beat asks every five seconds, and the worker notes it every fifteen.
_SILENT_AFTER: Final = timedelta(minutes=1)
_MANY_MESSAGES: Final = 1000
_RESTART: Final = "the agent starts it again by itself: if it does not, restart the agent"
_START: Final = "start it: `make serve`, or `python -m config.worker"
_AGENT: Final = "start it: `make serve`, or `manage.py run_engines`; its log is VAR/logs/agent.log"


def look_at_cache() -> Iterator[Finding]:
    key, value = f"doctor:{secrets.token_hex(8)}", secrets.token_hex(8)
    cache.set(key, value, 30)
    found = cache.get(key)
    cache.delete(key)
    if found != value:
        yield failure("cache", "what was written is not there", "look after the cache at CACHE_URL")
    elif "locmem" in settings.CACHES["default"]["BACKEND"]:
        yield ok("cache", "of each process alone: right for one server process (CACHE_URL unset)")
    else:
        yield ok("cache", "shared; a value came back")


def look_at_broker() -> Iterator[Finding]:
    folder = current_app.conf.broker_transport_options.get("data_folder_in")
    if folder is not None:
        yield _folder_broker(Path(folder))
        return
    with current_app.connection_for_write() as link:
        link.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        yield ok("broker", f"{link.as_uri()} answers")


def _folder_broker(folder: Path) -> Finding:
    if not folder.is_dir():
        return warning("broker", f"{folder} is not there yet", f"{_START} worker`, which makes it")
    n_messages = sum(1 for _ in folder.iterdir())
    seen = f"{n_messages} messages wait in {folder}"
    if n_messages > _MANY_MESSAGES:
        return warning("broker", seen, f"nobody takes them. If no worker runs, {_START} worker`")
    return ok("broker", seen)


def look_at_worker() -> Iterator[Finding]:
    now = timezone.now()
    beats, is_busy = heartbeats(), is_worker_busy(now)
    is_waiting = is_work_waiting(now)
    yield _heard_of(WORKER, beats.get(WORKER), now=now, is_busy=is_busy, is_waiting=is_waiting)
    yield _heard_of(BEAT, beats.get(BEAT), now=now, is_busy=is_busy, is_waiting=is_waiting)


def _heard_of(
    name: str, at: datetime | None, *, now: datetime, is_busy: bool, is_waiting: bool
) -> Finding:
    said = "never heard of" if at is None else f"heard of {(now - at).total_seconds():.0f} s ago"
    if at is not None and now - at < _SILENT_AFTER:
        return ok(name, said)
    if is_busy:
        return ok(name, f"{said}; a worker is busy with a batch, whose lease it holds")
    if is_waiting:
        return failure(name, f"{said}, and batches wait", f"{_START} {name}`")
    return warning(name, said, f"batches will not be answered: {_START} {name}`")


def look_at_agent() -> Iterator[Finding]:
    pid = lock_holder(settings.VAR_DIR / "agent.lock")
    if pid is not None:
        yield ok("agent", f"runs (pid {pid})")
    elif n_deployments := len(deployments_running()):
        yield failure("agent", f"does not run, and {n_deployments} deployments should", _AGENT)
    else:
        yield ok("agent", "does not run, and no deployment should")


def look_at_engines() -> Iterator[Finding]:
    try:
        deployments = deployments_with_replicas()
    except (DatabaseError, InterfaceError):
        yield from asyncio.run(_sockets_asked(engine_sockets(settings.VAR_DIR)))
        return
    running = [each for each in deployments if each.desired_state == "running"]
    if not running:
        yield ok("engines", "no deployment should run")
    processes = []
    for deployment in running:
        replicas = list(deployment.replicas.all())
        for replica in replicas:
            if replica.refusal:
                yield failure(f"engine {replica}", replica.refusal, "see docs/placement.md")
        processes += [replica.engine_process for replica in replicas if not replica.refusal]
        if len(replicas) < deployment.n_replicas:
            yield failure(
                f"engine {deployment.name}",
                f"{len(replicas)} of {deployment.n_replicas} replicas have been made",
                "the engine agent makes them: " + _AGENT,
            )
    yield from asyncio.run(_processes_asked(processes))


async def _processes_asked(processes: "list[EngineProcess]") -> list[Finding]:
    return list(await asyncio.gather(*(_process_asked(process) for process in processes)))


async def _process_asked(process: "EngineProcess") -> Finding:
    name = f"engine {process.name}"
    if process.state != process.State.READY:
        if process.state == process.State.FETCHING:
            return warning(
                name, f"waits for its files: {process.fetch_said or 'asked for'}", "wait"
            )
        if process.state == process.State.WAITING:
            return warning(name, "waits for memory that others have on its GPU", "wait")
        seen = f"is {process.get_state_display().lower()}. {process.last_error}".strip()
        if process.state == process.State.STARTING:
            return warning(name, seen, "wait until it has loaded its model")
        return failure(name, seen, f"its log says more: {process.log_path or 'VAR/logs'}")
    if process.info.get("backend") == "remote":  # the agent asks it, and knows how
        return ok(name, f"a remote server, answered the agent in {process.ping_ms or 0:.0f} ms")
    return await engine_asked(name, Path(process.socket_path), epoch=process.epoch)


async def _sockets_asked(sockets: list[Path]) -> list[Finding]:
    asked = (engine_asked(f"engine at {each.name}", each, epoch=None) for each in sockets)
    return list(await asyncio.gather(*asked)) or [ok("engines", "there are no sockets")]


async def engine_asked(name: str, path: Path, *, epoch: int | None) -> Finding:
    """Look at an engine's socket, then make a round trip through its step loop."""
    if (problem := _socket_problem(name, path)) is not None:
        return problem
    client = EngineClient(str(path), name="doctor", expected_epoch=epoch)
    try:
        info = await client.connect(timeout_s=_ENGINE_TIMEOUT_S)
        health = await client.ping(_ENGINE_TIMEOUT_S)
    except EngineClientError as error:
        return failure(name, f"does not answer: {error}", _RESTART)
    finally:
        await client.close()
    return ok(
        name,
        f"pid {info.pid} answers in {health.round_trip_s * 1000:.1f} ms: {info.kernels} on "
        f"{info.device}, {health.n_running} running, {health.n_waiting} waiting",
    )


def _socket_problem(name: str, path: Path) -> Finding | None:
    try:
        status, folder = path.stat(), path.parent.stat()
    except OSError as error:
        return failure(name, f"{path}: {error.strerror}", _RESTART)
    if not stat.S_ISSOCK(status.st_mode):
        return failure(name, f"{path} is no socket", f"remove it; {_RESTART}")
    if status.st_mode & 0o077 or folder.st_mode & 0o077:
        return failure(
            name,
            f"others may reach {path}",
            f"chmod 600 {path}; chmod 700 {path.parent}: who reaches it needs no token",
        )
    return None
