"""Waiting for a node cache without blocking the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

from apps.engines.fetching import OnBytes
from apps.engines.node_cache import Hold, NodeCache
from apps.registry.types import Artifact


async def files_hold(cache: NodeCache, artifact: Artifact, *, on_bytes: OnBytes) -> Hold:
    """As ``NodeCache.hold``, in a thread of its own, in which ``on_bytes`` is called. Whoever
    cancels this does not wait for the thread, which may be waiting for a storage that is gone."""
    is_stopping = threading.Event()
    outcome: Future[Hold] = Future()

    def work() -> None:
        try:
            hold = cache.hold(artifact, on_bytes=on_bytes, is_stopping=is_stopping.is_set)
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
        else:
            if outcome.set_running_or_notify_cancel():
                outcome.set_result(hold)
            else:
                hold.release()

    threading.Thread(target=work, name=f"fetch-{artifact.path}", daemon=True).start()
    try:
        return await asyncio.wrap_future(outcome)
    finally:
        is_stopping.set()


@contextlib.asynccontextmanager
async def files_held(
    cache: NodeCache, artifact: Artifact, *, on_bytes: OnBytes
) -> AsyncIterator[Path]:
    """Hold the files until the block ends. Raises as ``NodeCache.hold``."""
    hold = await files_hold(cache, artifact, on_bytes=on_bytes)
    try:
        yield hold.directory
    finally:
        hold.release()
