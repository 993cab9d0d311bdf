"""Looks at a remote replica, and says whether it can be asked: what ``Supervisor`` is to an engine
of ours, but that nothing is started here and nothing can be killed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from apps.engines.exceptions import EngineClientError
from apps.engines.models import EngineProcess
from apps.engines.policy import Timings
from apps.engines.remote.client import RemoteClient
from apps.engines.types import EngineObservation, EngineSpec, RemoteTarget, TakeEpoch

State = EngineProcess.State

_LOOK_EVERY_S: Final = 5.0
_LOOK_AGAIN_S: Final = 1.0
_FAILURES_ALLOWED: Final = 2  # in a row, of one that was ready


class RemoteWatch:
    """One slot. ``run`` lives until ``stop``; the rest is as of a ``Supervisor``."""

    def __init__(
        self,
        spec: EngineSpec,
        target: RemoteTarget,
        *,
        take_epoch: TakeEpoch,
        on_change: Callable[[], None],
        timings: Timings,
    ) -> None:
        self.spec = spec
        self.is_changed = True
        self.has_news = False
        self._target = target
        self._take_epoch = take_epoch
        self._on_change = on_change
        self._timings = timings
        self._stopping = asyncio.Event()
        self._state: State = State.STARTING
        self._epoch = 0
        self._n_failures = 0
        self._last_error = ""
        self._started_at: datetime | None = None
        self._ready_at: datetime | None = None
        self._answered_at: datetime | None = None
        self._round_trip_s: float | None = None

    def stop(self) -> None:
        """Have ``run`` return. Idempotent."""
        self._stopping.set()

    def kill(self) -> None:
        self.stop()

    def observation(self) -> EngineObservation:
        took_s = self._round_trip_s
        return EngineObservation(
            process_id=self.spec.process_id,
            state=self._state.value,
            pid=None,
            epoch=self._epoch,
            socket_path="",
            log_path="",
            started_at=self._started_at,
            ready_at=self._ready_at,
            last_pong_at=self._answered_at,
            ping_ms=None if took_s is None else round(took_s * 1000, 2),
            n_restarts=0,
            last_error=self._last_error,
            info=asdict(RemoteClient(self._target).info),
            stats={},
        )

    async def run(self) -> None:
        self._epoch = await self._take_epoch(self.spec.process_id)
        self._started_at = datetime.now(UTC)
        self._changed()
        client = RemoteClient(self._target)
        try:
            while not self._stopping.is_set():
                await self._look(client)
                await self._pause()
        finally:
            await client.close()
            self._state = State.STOPPED
            self._changed()

    async def _look(self, client: RemoteClient) -> None:
        started_s = time.monotonic()
        try:
            if client.is_closed:
                await client.connect()
            await client.look(timeout_s=self._timings.ping_deadline_s)
        except EngineClientError as error:
            self._failed(str(error))
        else:
            self._round_trip_s = time.monotonic() - started_s
            self._answered()

    def _answered(self) -> None:
        self._n_failures, self._answered_at = 0, datetime.now(UTC)
        if self._state is State.READY:
            self.has_news = True
            return
        self._state, self._ready_at, self._last_error = State.READY, self._answered_at, ""
        self._changed()

    def _failed(self, why: str) -> None:
        self._n_failures += 1
        is_known_bad = self._state is State.UNRESPONSIVE and self._last_error == why
        if is_known_bad or (self._state is State.READY and self._n_failures <= _FAILURES_ALLOWED):
            return
        self._state, self._last_error, self._round_trip_s = State.UNRESPONSIVE, why, None
        self._changed()

    async def _pause(self) -> None:
        pause_s = _LOOK_AGAIN_S if self._n_failures else _LOOK_EVERY_S
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _changed(self) -> None:
        self.is_changed = True
        self._on_change()
