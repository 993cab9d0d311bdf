"""Keeps one engine process alive: starts it, pings it, kills and restarts it as the policy says.
It knows neither the database nor what a deployment is."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from apps.core.files import log_open, log_tail
from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineClientError, FilesError
from apps.engines.health import EngineHealth
from apps.engines.holding import files_hold
from apps.engines.node_cache import Hold, NodeCache
from apps.engines.paths import AgentPaths, socket_exists, socket_remove
from apps.engines.policy import EXIT_CONFIG, Action, Lifecycle, State, Timings
from apps.engines.turns import Turn
from apps.engines.types import (
    CrashSeen,
    EngineInfo,
    EngineObservation,
    EngineSpec,
    TakeEpoch,
)

logger = logging.getLogger(__name__)

ROOT_DIR: Final = Path(__file__).resolve().parents[2]
_CONNECT_EVERY_S: Final = 0.05
_CRASH_LINES: Final = 20
_CRASH_BYTES: Final = 4096


class Supervisor:
    """One slot. ``run`` lives until ``stop`` was called and the process is gone.

    take_epoch: counts the start durably before the process is made. on_change: called whenever
    ``observation`` would say something new; ``is_changed`` tells a change of state from news.
    cache: where a spec's artifacts are held, from before the first start until ``run`` returns.
    turn: with the memory of what it shares; whoever made it calls ``turn_changed`` where it did.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        paths: AgentPaths,
        take_epoch: TakeEpoch,
        on_change: Callable[[], None],
        timings: Timings,
        turn: Turn,
        cache: NodeCache | None = None,
    ) -> None:
        self.spec = spec
        self.is_changed = True
        self.has_news = False
        self.crashes: list[CrashSeen] = []  # to be taken
        self._paths = paths
        self._take_epoch = take_epoch
        self._on_change = on_change
        self._life = Lifecycle(timings, needs_files=bool(spec.artifacts))
        self._cache = cache
        self._holds: tuple[Hold, ...] = ()
        self._fetched: tuple[int, int] | None = None
        self._turn = turn
        self._was_told = False
        self._turned = asyncio.Event()
        self._wake = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoch = 0
        self._socket: Path | None = None
        self._started_at: datetime | None = None
        self._ready_at: datetime | None = None
        self._last_pong_at: datetime | None = None
        self._info: EngineInfo | None = None
        self._health: EngineHealth | None = None

    @property
    def log_path(self) -> Path:
        return self._paths.log(self.spec.name)

    def stop(self) -> None:
        """Let the engine drain and end; ``run`` then returns. Idempotent."""
        self._life.stop()
        self._wake.set()

    def turn_changed(self) -> None:
        """Have the engine told at once."""
        self._turned.set()
        self._wake.set()

    def kill(self) -> None:
        """End the process at once, without draining."""
        self.stop()
        self._signal(signal.SIGKILL)

    def observation(self) -> EngineObservation:
        return EngineObservation(
            process_id=self.spec.process_id,
            state=self._life.state.value,
            pid=self._process.pid if self._process else None,
            epoch=self._epoch,
            socket_path=str(self._socket or ""),
            log_path=str(self.log_path),
            started_at=self._started_at,
            ready_at=self._ready_at,
            last_pong_at=self._last_pong_at,
            ping_ms=round(self._health.round_trip_s * 1000, 2) if self._health else None,
            n_restarts=self._life.n_restarts,
            last_error=self._life.last_error,
            info=asdict(self._info) if self._info else {},
            stats=_stats(self._health),
            tries_again_at=self._tries_again_at(),
            n_fetched_bytes=self._fetched[0] if self._fetched else None,
            n_fetch_bytes=self._fetched[1] if self._fetched else None,
        )

    def _tries_again_at(self) -> datetime | None:
        in_s = self._life.resumes_in_s(time.monotonic())
        return None if in_s is None else datetime.now(UTC) + timedelta(seconds=in_s)

    async def run(self) -> None:
        try:
            while not self._life.is_over:
                await self._act(self._life.decide(time.monotonic()))
                if self._life.is_over:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._life.timings.tick_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            self._signal(signal.SIGKILL)  # only when this task itself was cancelled
            for task in self._tasks:
                task.cancel()
            for hold in self._holds:
                hold.release()
            self._fetched = None
            self._changed()

    async def _act(self, action: Action) -> None:
        match action:
            case Action.FETCH:
                self._life.fetching()
                self._task(self._fetch())
                self._changed()
            case Action.SPAWN:
                await self._start()
            case Action.TERMINATE:
                logger.info("Stopping engine %s", self.spec.name)
                self._signal(signal.SIGTERM)
                self._changed()
            case Action.KILL:
                why = self._life.last_error or "did not stop in time"
                logger.warning("Killing engine %s: %s", self.spec.name, why)
                self._signal(signal.SIGKILL)
                self._changed()
            case Action.NONE:
                pass

    async def _fetch(self) -> None:
        """Wait until its files are here, and hold them."""
        assert self._cache is not None
        logger.info("Engine %s waits for its files", self.spec.name)
        try:
            self._holds = await files_hold(
                self._cache, self.spec.artifacts, on_bytes=self._fetch_note
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, it is said and tried again
            logger.warning("Engine %s has no files: %s", self.spec.name, error)
            if is_final := isinstance(error, FilesError) and error.is_final:
                self._fetched = None
            self._life.fetch_failed(time.monotonic(), reason=str(error), is_final=is_final)
        else:
            self._fetched = None
            self._life.fetched()
        self._changed()
        self._wake.set()

    def _fetch_note(self, done: int, total: int) -> None:
        """Called in another thread."""
        self._fetched = (done, total)
        self.has_news = True

    async def _start(self) -> None:
        """Start it, or have it wait until there is memory for it to be awake."""
        if self._turn.may_start():
            await self._spawn()
        elif self._life.state is not State.WAITING:
            logger.info("Engine %s waits for memory", self.spec.name)
            self._life.waits_for_memory()
            self._changed()

    async def _spawn(self) -> None:
        try:
            self._epoch = await self._take_epoch(self.spec.process_id)
            self._socket = self._paths.socket(process_id=self.spec.process_id, epoch=self._epoch)
            self._process = await self._process_start(self._socket)
        except Exception as error:  # the database or the system said no: both may come back
            logger.exception("Engine %s cannot be started", self.spec.name)
            self._socket = None
            self._life.spawn_failed(time.monotonic(), reason=f"cannot be started: {error}")
            self._turn.ended()
            self._changed()
            return
        self._was_told = False
        self._life.spawned(time.monotonic())
        self._started_at = datetime.now(UTC)
        self._ready_at = self._last_pong_at = self._info = self._health = None
        logger.info("Started engine %s, pid %d", self.spec.name, self._process.pid)
        watch = self._task(self._watch(self._socket, self._epoch))
        self._task(self._reap(self._process, self._socket, watch))
        self._changed()

    async def _process_start(self, socket: Path) -> asyncio.subprocess.Process:
        log = log_open(self.log_path)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine_service",
                *self.spec.arguments,
                *("--socket", str(socket), "--epoch", str(self._epoch)),
                *("--journal", str(self._paths.journal_dir)),
                *("--drain-s", str(self._life.timings.drain_s), "--exit-with-parent"),
                cwd=ROOT_DIR,
                env={**os.environ, **dict(self.spec.environment)},
                stdin=asyncio.subprocess.PIPE,  # it closes when the agent dies, however it dies
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is the agent's to act on
            )
        finally:
            os.close(log)

    async def _watch(self, socket: Path, epoch: int) -> None:
        """Ping for as long as the process lives; the policy judges the silence between."""
        while True:
            if socket_exists(socket):
                client = EngineClient(str(socket), name="agent", expected_epoch=epoch)
                try:
                    self._info = await client.connect()
                    await self._ping_on(client)
                except EngineClientError as error:
                    logger.debug("Engine %s: %s", self.spec.name, error)
                finally:
                    await client.close()
            await asyncio.sleep(_CONNECT_EVERY_S)

    async def _ping_on(self, client: EngineClient) -> None:
        timings = self._life.timings
        while True:
            told = self._to_tell()
            self._turned.clear()
            was = self._health
            self._health = await client.ping(timings.ping_deadline_s, may_hold_memory=told)
            self._turn.seen(self._health, told=told)
            before = self._life.state
            self._life.ponged(time.monotonic(), draining=self._health.draining)
            self._last_pong_at = datetime.now(UTC)
            if before is State.STARTING and self._life.state is State.READY:
                self._ready_at = self._last_pong_at
                logger.info("Engine %s is ready", self.spec.name)
            if before is not self._life.state or _slept_or_woke(was, self._health):
                self._changed()
            else:
                self.has_news = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    timings.shared_ping_every_s if self._turn.is_contended else timings.ping_every_s
                ):
                    await self._turned.wait()

    def _to_tell(self) -> bool | None:
        """Return what it is told of its turn; nothing where it never shared any memory."""
        if self._turn.takes_turns or self._was_told:
            self._was_told = True
            return self._turn.may_hold
        return None

    async def _reap(
        self, process: asyncio.subprocess.Process, socket: Path, watch: asyncio.Task[None]
    ) -> None:
        code = await process.wait()
        watch.cancel()
        socket_remove(socket)
        self._process = self._socket = self._health = None
        self._turn.ended()
        reason = _reason(code, self.log_path)
        if self._life.is_crash(code):
            self.crashes.append(self._crash(reason))
        self._life.exited(code, time.monotonic(), reason=reason)
        if code == EXIT_CONFIG and self._cache is not None:
            for hold in self._holds:  # it may have been its files
                await asyncio.to_thread(self._cache.doubt, hold)
        logger.info("Engine %s ended with %d: now %s", self.spec.name, code, self._life.state.label)
        self._changed()
        self._wake.set()

    def _crash(self, reason: str) -> CrashSeen:
        lines = log_tail(self.log_path, n_lines=_CRASH_LINES, n_bytes=_CRASH_BYTES)
        return CrashSeen(
            engine_name=self.spec.name,
            epoch=self._epoch,
            at=datetime.now(UTC),
            reason=self._life.last_error if self._life.was_killed else reason,
            log_end="\n".join(lines).replace("\0", ""),
        )

    def _task(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _changed(self) -> None:
        self.is_changed = True
        self._on_change()


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    last_line = next(iter(log_tail(log, n_lines=1)), "")
    return f"exit code {code}: {last_line}"[:1000]


def _slept_or_woke(was: EngineHealth | None, health: EngineHealth) -> bool:
    """Whether it fell asleep, woke or began to wait for memory since."""
    if was is None:
        return False
    before = (was.is_asleep, was.waits_for_memory)
    return before != (health.is_asleep, health.waits_for_memory)


def _stats(health: EngineHealth | None) -> dict[str, Any]:
    if health is None:
        return {}
    stats = asdict(health)
    for name in ("epoch", "draining", "round_trip_s"):
        del stats[name]
    return stats
