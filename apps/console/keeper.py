"""Keeps a child process running: starts it again, with a growing pause, when it ends by itself."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from typing import Final

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# Whoever ran so long had started well: the next pause is short again.
_GOOD_RUN_S: Final = 60.0


class Keeper:
    """One such child. ``child`` is the process of the moment, None before the first."""

    def __init__(
        self,
        name: str,
        *,
        spawn: Callable[[], Awaitable[Process]],
        report: Callable[[str], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.child: Process | None = None
        self._name = name
        self._spawn = spawn
        self._report = report
        self._first_pause_s = first_pause_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once the child was started for the first time."""
        self.child = await self._spawn()

    async def ended(self) -> None:
        """Return when the child that was started has ended."""
        assert self.child is not None
        await self.child.wait()

    def keep(self) -> None:
        """Start it again from now on whenever it ends, or has ended meanwhile."""
        assert self.child is not None
        self._task = asyncio.create_task(self._keep(self.child), name=f"keep-{self._name}")

    async def let_go(self) -> Process | None:
        """Start it no more; return the process that may still run."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        return self.child

    async def _keep(self, child: Process) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._first_pause_s
        while True:
            started_s = loop.time()
            status = await child.wait()
            if loop.time() - started_s > _GOOD_RUN_S:
                pause_s = self._first_pause_s
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self._report(f"The {self._name} ended by itself ({how}) and is started again")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            # To its end also when nobody wants the child any more: it must not be lost sight of.
            spawning = asyncio.ensure_future(self._spawn())
            try:
                child = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                self.child = await spawning
                raise
            self.child = child
