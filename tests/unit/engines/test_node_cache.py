"""The node cache: what is fetched, by whom, what goes for it, and what it never gives out."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.engines.exceptions import FetchStopped, FilesAltered, NodeCacheFull
from apps.engines.node_cache import Hold, NodeCache
from apps.registry.types import Artifact
from tests.processes import ROOT
from tests.unit.engines.files import CHUNK, MemoryStorage
from tests.waiting import wait_until

MOST = 20_000


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def cache(tmp_path: Path, storage: MemoryStorage) -> NodeCache:
    return cache_in(tmp_path, storage)


def cache_in(tmp_path: Path, storage: MemoryStorage, *, keep_free_bytes: int = 0) -> NodeCache:
    return NodeCache(
        tmp_path / "cache", most_bytes=MOST, read=storage.read, keep_free_bytes=keep_free_bytes
    )


@pytest.fixture
def artifact(storage: MemoryStorage) -> Artifact:
    return storage.add("a/1", weights=5000, config=20, empty=0)


def check(hold: Hold, artifact: Artifact, storage: MemoryStorage) -> None:
    """It has all that the storage has, byte for byte, and nothing else."""
    found = {path.name: path.read_bytes() for path in hold.directory.iterdir()}
    assert found == {
        name.rpartition("/")[2]: data
        for name, data in storage.files.items()
        if name.startswith(f"{artifact.path}/")
    }


def folders(cache: NodeCache) -> set[str]:
    return {path.name for path in cache._directory.iterdir()} - {"locks"}


def used_in_order(cache: NodeCache, *artifacts: Artifact) -> None:
    """Clocks of file systems are coarse."""
    for at, each in enumerate(artifacts):
        os.utime(cache._locks / each.manifest_sha256, (at, at))


def test_files_are_fetched_once_and_stay(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    seen: list[tuple[int, int]] = []
    with_progress = cache.hold(artifact, on_bytes=lambda done, total: seen.append((done, total)))
    check(with_progress, artifact, storage)
    assert with_progress.directory == cache.directory_of(artifact)
    assert {total for _, total in seen} == {artifact.size_bytes}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == artifact.size_bytes
    with_progress.release()
    with_progress.release()
    check(cache.hold(artifact), artifact, storage)
    assert set(storage.reads.values()) == {1}
    assert cache.used_bytes() == artifact.size_bytes


def test_many_who_ask_at_once_share_one_fetch(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    is_open, has_begun = threading.Event(), threading.Event()
    holds: list[Hold] = []
    told: list[int] = []

    def wait(name: str, at: int) -> None:
        has_begun.set()
        if at == 2 * CHUNK:
            is_open.wait(10)

    storage.on_chunk = wait
    first = threading.Thread(target=lambda: holds.append(cache.hold(artifact)))
    first.start()
    assert has_begun.wait(10)
    others = [
        threading.Thread(
            target=lambda: holds.append(
                cache.hold(artifact, on_bytes=lambda done, total: told.append(done))
            )
        )
        for _ in range(3)
    ]
    for other in others:
        other.start()
    wait_until("the others to see how far it is", lambda: any(done >= CHUNK for done in told))
    is_open.set()
    for thread in (first, *others):
        thread.join(10)
    assert len(holds) == 4
    assert set(storage.reads.values()) == {1}


def test_a_fetch_that_broke_off_goes_on(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    def fail(name: str, at: int) -> None:
        if at == 3 * CHUNK:
            raise ConnectionError("gone")

    storage.on_chunk = fail
    with pytest.raises(ConnectionError):
        cache.hold(artifact)
    assert not cache.directory_of(artifact).exists()
    storage.on_chunk = lambda name, at: None
    check(cache.hold(artifact), artifact, storage)
    assert [offset for name, offset in storage.offsets if name == "a/1/weights"] == [0, 3 * CHUNK]
    assert storage.reads["a/1/manifest.json"] == 1


def test_what_an_earlier_fetch_left_wrong_is_fetched_anew(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    partial = cache._partial(artifact.manifest_sha256)
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(b"x" * 4000)
    (partial / "config").write_bytes(b"x" * 4000)
    (partial / "stranger").write_bytes(b"x")
    check(cache.hold(artifact), artifact, storage)
    assert [offset for name, offset in storage.offsets if name == "a/1/weights"] == [4000, 0]


@pytest.mark.parametrize("name", ["weights", "config", "manifest.json"])
@pytest.mark.parametrize("how", ["other", "shorter", "longer"])
def test_wrong_bytes_are_refused(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact, name: str, how: str
) -> None:
    key = f"a/1/{name}"
    right = storage.files[key]
    wrong = {"other": b"X" + right[1:], "shorter": right[:-1], "longer": right + b"X"}
    storage.files[key] = wrong[how]
    with pytest.raises(FilesAltered, match=f"{name} in the artifact storage was altered"):
        cache.hold(artifact)
    assert not cache.directory_of(artifact).exists()
    storage.files[key] = right
    check(cache.hold(artifact), artifact, storage)


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "manifest.json", ""])
def test_a_manifest_names_files_of_its_own_only(
    cache: NodeCache, storage: MemoryStorage, tmp_path: Path, name: str
) -> None:
    artifact = storage.add("a/1", **{name: 10})
    if name == "manifest.json":  # which was written over by the manifest itself
        assert b'"manifest.json"' in storage.files["a/1/manifest.json"]
    with pytest.raises(FilesAltered, match="which is not a file name"):
        cache.hold(artifact)
    assert folders(cache) == set()


def test_a_fetch_is_stopped_and_keeps_what_it_has(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    n_chunks = 0

    def is_stopping() -> bool:
        nonlocal n_chunks
        n_chunks += 1
        return n_chunks > 2

    with pytest.raises(FetchStopped):
        cache.hold(artifact, is_stopping=is_stopping)
    check(cache.hold(artifact), artifact, storage)
    assert [offset for name, offset in storage.offsets if name == "a/1/weights"] == [0, 3 * CHUNK]


def test_who_was_used_longest_ago_makes_room(cache: NodeCache, storage: MemoryStorage) -> None:
    artifacts = [storage.add(f"m/{n}", weights=6000) for n in range(4)]
    for each in artifacts[:3]:
        cache.hold(each).release()
    used_in_order(cache, artifacts[1], artifacts[0], artifacts[2])
    cache.hold(artifacts[3]).release()
    left = {artifacts[n].manifest_sha256 for n in (0, 2, 3)}
    assert folders(cache) == left
    assert cache.used_bytes() <= MOST


def test_what_is_in_use_is_never_evicted(cache: NodeCache, storage: MemoryStorage) -> None:
    used, unused, wanted = (storage.add(f"m/{n}", weights=9000) for n in range(3))
    hold = cache.hold(used)
    cache.hold(unused).release()
    used_in_order(cache, used, unused)
    cache.hold(wanted)
    assert folders(cache) == {used.manifest_sha256, wanted.manifest_sha256}
    check(hold, used, storage)


def test_a_bound_that_is_too_small_says_by_how_much_and_evicts_nothing(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    used, unused = storage.add("m/0", weights=9000), storage.add("m/1", weights=4000)
    hold = cache.hold(used)
    cache.hold(unused).release()
    larger = storage.add("m/2", weights=15_000)
    with pytest.raises(NodeCacheFull) as caught:
        cache.hold(larger)
    missing = used.size_bytes + larger.size_bytes - MOST
    assert caught.value.missing_bytes == missing
    assert str(caught.value) == (
        f"The node cache has no room for its files: of {larger.size_bytes:,} bytes {missing:,} are "
        "missing beside what is in use (NODE_CACHE_BYTES is 20,000)."
    )
    assert folders(cache) == {used.manifest_sha256, unused.manifest_sha256}
    assert storage.reads["m/2/weights"] == 0
    hold.release()
    cache.hold(larger)
    assert larger.manifest_sha256 in folders(cache)


def test_a_disk_that_is_full_says_so(
    tmp_path: Path, storage: MemoryStorage, artifact: Artifact
) -> None:
    cache = cache_in(tmp_path, storage, keep_free_bytes=1 << 60)
    with pytest.raises(NodeCacheFull, match=r"are missing .* \(the disk of .* has no more\)"):
        cache.hold(artifact)
    assert storage.reads["a/1/weights"] == 0


def test_a_disk_that_fills_meanwhile_gets_back_what_was_taken(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    def fill(name: str, at: int) -> None:
        if at == 2 * CHUNK:
            raise OSError(errno.ENOSPC, "No space left on device")

    storage.on_chunk = fill
    with pytest.raises(NodeCacheFull, match=r"\(the disk of .* is full\)") as caught:
        cache.hold(artifact)
    assert caught.value.missing_bytes == 5000 - 2 * CHUNK + 20  # of the weights, and the rest
    assert folders(cache) == set()


def test_fetches_that_run_count_as_what_they_will_be(
    cache: NodeCache, storage: MemoryStorage
) -> None:
    first, second = storage.add("m/0", weights=12_000), storage.add("m/1", weights=12_000)
    is_open, has_begun = threading.Event(), threading.Event()

    def wait(name: str, at: int) -> None:
        if name == "m/0/weights":
            has_begun.set()
            is_open.wait(10)

    storage.on_chunk = wait
    thread = threading.Thread(target=cache.hold, args=(first,))
    thread.start()
    assert has_begun.wait(10)
    with pytest.raises(NodeCacheFull) as caught:
        cache.hold(second)
    assert caught.value.missing_bytes == first.size_bytes + second.size_bytes - MOST
    is_open.set()
    thread.join(10)
    assert folders(cache) == {first.manifest_sha256}


def test_a_fetch_that_was_given_up_makes_room(cache: NodeCache, storage: MemoryStorage) -> None:
    first, second = storage.add("m/0", weights=12_000), storage.add("m/1", weights=12_000)
    with pytest.raises(FetchStopped):
        cache.hold(first, is_stopping=lambda: True)
    cache.hold(second)
    # All that there was of it was a chunk, for which there is room.
    assert folders(cache) == {f"{first.manifest_sha256}.partial", second.manifest_sha256}
    third = storage.add("m/2", weights=7_500)
    used_in_order(cache, first, second)
    cache.hold(third)
    assert folders(cache) == {second.manifest_sha256, third.manifest_sha256}


def test_files_that_an_engine_refused_are_looked_at_again(
    cache: NodeCache, storage: MemoryStorage, artifact: Artifact
) -> None:
    hold = cache.hold(artifact)
    (hold.directory / "weights").write_bytes(b"rot" * 1000)
    other = cache.hold(artifact)
    cache.doubt(hold)
    assert cache.directory_of(artifact).is_dir()  # somebody else uses it
    cache.doubt(other)
    assert not cache.directory_of(artifact).exists()
    check(cache.hold(artifact), artifact, storage)
    assert storage.reads == {"a/1/manifest.json": 1, "a/1/config": 1, "a/1/weights": 3}


KILLED = """
import os, signal, sys, threading
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/platform"]
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.test"
import django; django.setup()
from tests.unit.engines.test_node_cache import cache_in
from tests.unit.engines.files import MemoryStorage
storage = MemoryStorage()
artifact = storage.add("a/1", weights=5000, config=20, empty=0)
def die(name, at):
    if at == 3000:
        print("holds", flush=True)
        threading.Event().wait()
storage.on_chunk = die
cache_in(Path(sys.argv[1]), storage).hold(artifact)
"""


@pytest.fixture
def fetching_process(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process, in the middle of the same fetch."""
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holds\n"
            yield process
        finally:
            process.kill()


def test_a_process_that_is_killed_leaves_no_lock_and_no_more_than_a_start(
    cache: NodeCache,
    storage: MemoryStorage,
    artifact: Artifact,
    fetching_process: "subprocess.Popen[bytes]",
) -> None:
    told: list[int] = []
    holds: list[Hold] = []
    waiter = threading.Thread(
        target=lambda: holds.append(
            cache.hold(artifact, on_bytes=lambda done, total: told.append(done))
        )
    )
    waiter.start()
    wait_until("it to see how far the other one is", lambda: bool(told) and told[-1] > 3000)
    assert storage.reads["a/1/weights"] == 0
    fetching_process.send_signal(signal.SIGKILL)
    waiter.join(20)
    check(holds[0], artifact, storage)
    assert [offset for name, offset in storage.offsets if name == "a/1/weights"] == [3000]
