"""Tells this process when another one changed what it holds in memory."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping

from apps.core.hop import database_hop
from apps.core.selectors import change_stamps

logger = logging.getLogger(__name__)

Callback = Callable[[str], None]


class StampWatcher:
    """Polls the change stamps, in one query, and calls back for every stamp that moved.

    The first poll counts every stamp as moved: what was loaded before it may be stale. Nothing is
    missed while the database is away, because values are compared, not events counted.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        read: Callable[[], dict[str, int]] = change_stamps,
    ) -> None:
        self._interval_s = interval_s
        self._read = read
        self._seen: dict[str, int] = {}
        self._before: dict[str, int] | None = None
        self._is_read = False
        self._callbacks: defaultdict[str, list[Callback]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._healthy = True

    def subscribe(self, name: str, callback: Callback) -> None:
        """Call ``callback(name)`` on the event loop after stamp ``name`` moved. It must not block;
        it may start a task."""
        self._callbacks[name].append(callback)

    def start(self) -> None:
        """Start polling on the running loop; a second call while it polls does nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="stamp-watcher")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def seen(self) -> Mapping[str, int]:
        """Every stamp as the last poll read it."""
        return self._seen

    @property
    def before(self) -> Mapping[str, int] | None:
        """Every stamp as the poll before the last read it; None until there were two."""
        return self._before

    async def values(self) -> Mapping[str, int]:
        """Return every stamp as it was last read, which is at most a poll ago."""
        if not self._is_read:
            await self.poll()
        return self._seen

    async def poll(self) -> None:
        """Read once and call back for what moved."""
        stamps = await database_hop(self._read)
        moved = [name for name, value in stamps.items() if self._seen.get(name) != value]
        self._before = self._seen if self._is_read else None
        self._seen, self._is_read = stamps, True
        for name in moved:
            for callback in self._callbacks[name]:
                try:
                    callback(name)
                except Exception:  # one subscriber's fault must not stop the others' news
                    logger.exception("A subscriber to the stamp %r failed", name)

    async def _run(self) -> None:
        while True:
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001 - a watcher that ends leaves stale state
                if self._healthy:
                    logger.warning("Change stamps cannot be read, trying again: %r", error)
                self._healthy = False
            else:
                self._healthy = True
            await asyncio.sleep(self._interval_s)
