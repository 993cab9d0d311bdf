"""Waiting for a node cache without blocking the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from apps.engines.fetching import OnBytes
from apps.engines.node_cache import Hold, NodeCache
from apps.registry.types import Artifact


async def files_hold(
    cache: NodeCache, artifacts: Sequence[Artifact], *, on_bytes: OnBytes
) -> tuple[Hold, ...]:
    """As ``NodeCache.hold`` of each, all or none, in a thread of its own, in which ``on_bytes`` is
    called. Whoever cancels this does not wait for the thread, which may be waiting for a storage
    that is gone."""
    is_stopping = threading.Event()
    outcome: Future[tuple[Hold, ...]] = Future()

    def work() -> None:
        try:
            holds = _all_held(cache, artifacts, on_bytes=on_bytes, is_stopping=is_stopping.is_set)
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
        else:
            if outcome.set_running_or_notify_cancel():
                outcome.set_result(holds)
            else:
                _release(holds)

    name = f"fetch-{' '.join(artifact.path for artifact in artifacts)}"
    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        return await asyncio.wrap_future(outcome)
    finally:
        is_stopping.set()


@contextlib.asynccontextmanager
async def files_held(
    cache: NodeCache, artifact: Artifact, *, on_bytes: OnBytes
) -> AsyncIterator[Path]:
    """Hold the files until the block ends. Raises as ``NodeCache.hold``."""
    (hold,) = await files_hold(cache, [artifact], on_bytes=on_bytes)
    try:
        yield hold.directory
    finally:
        hold.release()


def _all_held(
    cache: NodeCache,
    artifacts: Sequence[Artifact],
    *,
    on_bytes: OnBytes,
    is_stopping: Callable[[], bool],
) -> tuple[Hold, ...]:
    """Hold one after the other; ``on_bytes`` hears of all of them as of one."""
    total = sum(artifact.size_bytes for artifact in artifacts)
    holds: list[Hold] = []

    def note(done: int, _: int) -> None:
        n_before = sum(artifact.size_bytes for artifact in artifacts[: len(holds)])
        on_bytes(n_before + done, total)

    try:
        for artifact in artifacts:
            holds.append(cache.hold(artifact, on_bytes=note, is_stopping=is_stopping))
    except BaseException:
        _release(holds)
        raise
    return tuple(holds)


def _release(holds: Iterable[Hold]) -> None:
    for hold in holds:
        hold.release()
