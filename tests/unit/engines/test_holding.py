"""Files of several versions are held together: all of them or none."""

import asyncio
import threading
from pathlib import Path

import pytest

from apps.engines.exceptions import NodeCacheFull
from apps.engines.holding import files_held, files_hold
from apps.engines.node_cache import NodeCache
from apps.registry.types import Artifact
from tests.unit.engines.files import MemoryStorage
from tests.waiting import wait_until

MOST = 20_000


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def cache(tmp_path: Path, storage: MemoryStorage) -> NodeCache:
    return NodeCache(tmp_path / "cache", most_bytes=MOST, read=storage.read, keep_free_bytes=0)


async def hold_none(cache: NodeCache, *artifacts: Artifact) -> None:
    """Nobody holds these: what needs all the room gets it."""
    for artifact in artifacts:
        async with files_held(cache, artifact, on_bytes=lambda done, total: None):
            pass


async def test_both_are_held_and_how_far_they_are_is_one_sum(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    large = storage.add("large/1", weights=6000)
    small = storage.add("small/1", weights=3000)
    huge = storage.add("huge/1", weights=MOST - 2000)
    seen: list[tuple[int, int]] = []
    holds = await files_hold(
        cache, (large, small), on_bytes=lambda done, total: seen.append((done, total))
    )
    assert [hold.directory for hold in holds] == [
        cache.directory_of(large),
        cache.directory_of(small),
    ]
    total = large.size_bytes + small.size_bytes
    assert {each for _, each in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == total
    for hold in holds:
        with pytest.raises(NodeCacheFull):
            await hold_none(cache, huge)
        hold.release()
    await hold_none(cache, huge)


async def test_where_one_finds_no_room_none_is_held(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    small = storage.add("small/1", weights=3000)
    huge = storage.add("huge/1", weights=MOST - 2000)
    with pytest.raises(NodeCacheFull):
        await files_hold(cache, (small, huge), on_bytes=lambda done, total: None)
    assert cache.directory_of(small).is_dir()
    await hold_none(cache, huge)
    assert not cache.directory_of(small).exists()


async def test_two_versions_of_the_same_files_are_let_go_of_one_by_one(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    same = storage.add("small/1", weights=3000)
    first, second = await files_hold(cache, (same, same), on_bytes=lambda done, total: None)
    assert storage.reads["small/1/weights"] == 1
    cache.doubt(first)
    assert second.directory.is_dir()
    cache.doubt(second)
    assert not second.directory.exists()


async def test_who_is_cancelled_in_the_second_holds_neither(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    small = storage.add("small/1", weights=3000)
    large = storage.add("large/1", weights=6000)
    huge = storage.add("huge/1", weights=MOST - 2000)
    arrived, goes_on = threading.Event(), threading.Event()

    def stop(name: str, at: int) -> None:
        if name == "large/1/weights":
            arrived.set()
            goes_on.wait(30)

    storage.on_chunk = stop
    task = asyncio.create_task(files_hold(cache, (small, large), on_bytes=lambda done, total: None))
    await asyncio.to_thread(arrived.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    goes_on.set()
    threads = [each for each in threading.enumerate() if each.name == "fetch-small/1 large/1"]
    wait_until("its thread to end", lambda: not any(each.is_alive() for each in threads))
    await hold_none(cache, huge)
