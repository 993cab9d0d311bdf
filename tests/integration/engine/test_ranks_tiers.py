"""Two processes that hold a model together keep each its part of the blocks that their pools evict,
in host memory and on disk: the same tokens as one process has, whatever becomes of a part."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.errors import EngineLost, ModelError
from engine_service.runner import tensor_parallel
from engine_service.runner.common_tiers import CommonTiers, do_tier_part
from engine_service.runner.kv_cache import KVCache
from engine_service.runner.kv_disk import DiskBlocks
from engine_service.runner.kv_tiers import KVTiers
from engine_service.runner.rank_messages import Stored, TierPart
from tests.integration.engine import rank_in_need
from tests.integration.engine.backend import run, tokens
from tests.integration.engine.test_kv_tiers import (
    BLOCK_BYTES,
    FIVE,
    FOUR_MORE,
    N_BLOCKS,
    N_FEW,
    N_MANY,
    answers,
    filled_cache,
    make_backend,
    make_request,
    random_requests,
    tiers,
)
from tests.integration.engine.test_ranks_asleep import rank_process
from tests.integration.engine.test_sleep import fall_asleep
from tests.integration.engine.test_tensor_parallel import two_ranks
from tests.waiting import wait_until

TAG_BYTES = 16


def settings_of(*, n_host: int, disk: Path | None = None) -> dict[str, Any]:
    """Room for so many blocks, of both ranks together, and for 64 on disk."""
    settings: dict[str, Any] = {
        "kv_cache_tokens": 16 * N_BLOCKS,
        "max_batched_tokens": 512,
        "host_kv_cache_bytes": n_host * BLOCK_BYTES,
    }
    if disk is not None:
        settings |= {
            "disk_kv_cache_bytes": 64 * (BLOCK_BYTES + 2 * TAG_BYTES),
            "kv_cache_dir": disk,
        }
    return settings


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[list[int]]:
    return [found for found, _ in answers(make_backend(model_dir), *FIVE)]


def disk_of_rank_1(backend: NativeBackend, directory: Path) -> int:
    """Return the file of its blocks, which has no name, opened once more."""
    files = Path(f"/proc/{rank_process(backend).pid}/fd").iterdir()
    (file,) = [each for each in files if str(each.readlink()).startswith(f"{directory}/")]
    return os.open(file, os.O_RDWR)


@pytest.mark.parametrize(("n_host", "hit_by"), [(N_MANY, "host"), (N_FEW, "disk")])
def test_what_was_evicted_is_not_computed_again(
    model_dir: Path, tmp_path: Path, expected: list[list[int]], n_host: int, hit_by: str
) -> None:
    disk = tmp_path / "kv" if hit_by == "disk" else None
    with two_ranks(model_dir, **settings_of(n_host=n_host, disk=disk)) as backend:
        assert answers(backend, *FIVE) == [(found, 0) for found in expected]
        assert answers(backend, *FIVE) == [(found, 64) for found in expected]
        stats = tiers(backend)
        assert {"host": stats.n_host_hits, "disk": stats.n_disk_hits}[hit_by] >= 8
        assert stats.n_dropped == 0
        assert stats.host_bytes <= stats.host_bytes_total == n_host * BLOCK_BYTES
        assert stats.disk_bytes_total == (64 * BLOCK_BYTES if disk else 0)
        assert backend.purge("person-10") == 4
        assert answers(backend, FIVE[1]) == [(expected[1], 0)]
        assert answers(backend, FIVE[0], FIVE[2]) == [(expected[0], 64), (expected[2], 64)]
        backend.purge("acme")
        stats = tiers(backend)
        assert (stats.host_bytes, stats.disk_bytes, backend.stats().n_blocks_cached) == (0, 0, 0)
        if disk is not None:
            file = disk_of_rank_1(backend, disk)
            assert os.fstat(file).st_size > 0
            wait_until("zeros on rank 1's disk", lambda: not any(os.pread(file, 2**24, 0)))
            os.close(file)
        assert answers(backend, *FIVE) == [(found, 0) for found in expected]


def test_a_part_that_one_rank_cannot_read_is_a_miss_of_all(
    model_dir: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    with two_ranks(model_dir, **settings_of(n_host=N_FEW, disk=tmp_path)) as backend:
        answers(backend, *FIVE, *FOUR_MORE)
        file, slot_bytes = disk_of_rank_1(backend, tmp_path), BLOCK_BYTES // 2 + TAG_BYTES
        n_written = tiers(backend).n_written
        wait_until(
            "the blocks to be written", lambda: os.fstat(file).st_size >= n_written * slot_bytes
        )
        for start in range(0, os.fstat(file).st_size, slot_bytes):
            byte = os.pread(file, 1, start + 100)
            os.pwrite(file, bytes([byte[0] ^ 1]), start + 100)
        os.close(file)
        assert answers(backend, FIVE[0]) == [(expected[0], 0)]
        stats = tiers(backend)
        assert (stats.n_unreadable, stats.n_disk_hits) == (1, 0)
        assert [found for found, _ in answers(backend, *FIVE)] == expected
        assert backend.stats().n_failed == 0


def test_random_requests_in_company_get_what_they_get_alone(
    model_dir: Path, tmp_path: Path
) -> None:
    requests = random_requests()
    roomy = make_backend(model_dir, kernels="torch")
    alone = {request.key: tokens(run(roomy, request)[request.key]) for request in requests}
    with two_ranks(model_dir, **settings_of(n_host=4, disk=tmp_path)) as tight:
        for start in range(0, 24, 6):
            outputs = run(tight, *requests[start : start + 6])
            for request in requests[start : start + 6]:
                assert sorted(tokens(outputs[request.key])) == sorted(alone[request.key])
        stats = tiers(tight)
    assert min(stats.n_host_hits, stats.n_disk_hits, stats.n_host_evictions) > 0


def test_what_they_keep_they_keep_while_they_sleep_and_a_purge_reaches_it(
    model_dir: Path, expected: list[list[int]]
) -> None:
    settings = settings_of(n_host=N_MANY)
    with two_ranks(model_dir, sleep_after_s=1000.0, **settings) as backend:
        answers(backend, *FIVE)
        fall_asleep(backend)
        assert answers(backend, FIVE[0]) == [(expected[0], 64)]
        fall_asleep(backend)
        assert backend.purge("person-10") == 4
        assert answers(backend, FIVE[1], FIVE[0]) == [(expected[1], 0), (expected[0], 64)]


def test_a_transfer_that_fails_on_rank_0_ends_the_engine(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has done its part of it already."""
    with two_ranks(model_dir, **settings_of(n_host=N_MANY)) as backend:
        answers(backend, *FIVE)
        monkeypatch.setattr(KVTiers, "load", lambda self, pairs: 1 / 0)
        backend.add(make_request(0, first=0))
        with pytest.raises(EngineLost, match="rank 0 failed at its memory tiers: division"):
            backend.step()


def test_a_rank_that_cannot_have_its_tiers_refuses_the_start(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = tmp_path / "need"
    need.write_text("no memory for tiers")
    monkeypatch.setenv(rank_in_need.VARIABLE, str(need))
    monkeypatch.setattr(tensor_parallel, "_MODULE", rank_in_need.MODULE)
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with (
        pytest.raises(ModelError, match=r"rank 1: .* of host memory cannot be had"),
        two_ranks(model_dir, **settings_of(n_host=N_MANY)),
    ):
        pass
    with (
        pytest.raises(ModelError, match=f"must hold at least one block of {BLOCK_BYTES} bytes"),
        two_ranks(model_dir, **{**settings_of(n_host=1), "host_kv_cache_bytes": BLOCK_BYTES - 1}),
    ):
        pass
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


# -- what holds the bytes --------------------------------------------------------------------------


class OtherRank:
    """Stands in for ``RankGroup``: a rank in this process."""

    n_ranks = 2

    def __init__(self, own: KVTiers) -> None:
        self.own = own
        self._said: list[Stored | None] = []

    def send(self, part: TierPart) -> None:
        self._said.append(do_tier_part(part, tiers=self.own))

    def answers(self, kind: type[Stored]) -> list[Stored]:
        said = self._said.pop()
        assert isinstance(said, kind)
        return [said]


Pair = tuple[CommonTiers, tuple[KVTiers, KVTiers], tuple[KVCache, KVCache]]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two ranks' tiers of four blocks, the second one's disk taking one at a time."""
    caches = (filled_cache(4), filled_cache(4))
    n_bytes = caches[0].pool.block_bytes
    parts = [
        KVTiers(
            cache.pool,
            n_host_slots=4,
            disk=DiskBlocks(tmp_path, n_slots=4, block_bytes=n_bytes, max_waiting=max_waiting),
        )
        for cache, max_waiting in zip(caches, (4, 1), strict=True)
    ]
    yield (
        CommonTiers(parts[0], ranks=OtherRank(parts[1])),  # type: ignore[arg-type]
        (parts[0], parts[1]),
        caches,
    )


def test_both_keep_the_same_block_in_the_same_slot(pair: Pair) -> None:
    common, parts, caches = pair
    assert common.block_bytes == 2 * parts[0].block_bytes
    before = [[layer.clone() for layer in cache.layers] for cache in caches]
    common.spill([(0, 3), (1, 2)])
    assert common.write(3, disk_slot=1, digest=b"a")
    for part in parts:
        part.flush()
    common.erase_host([3])
    assert not any(part._slot(3).any() for part in parts)
    assert all(part._slot(2).any() for part in parts)
    assert common.read(1, host_slot=0, digest=b"a")
    assert not common.read(1, host_slot=1, digest=b"b")
    common.load([(0, 2), (2, 3)])
    for cache, layers in zip(caches, before, strict=True):
        for layer, old in zip(cache.layers, layers, strict=True):
            assert torch.equal(layer[2], old[0])
            assert torch.equal(layer[3], old[1])
    common.erase_disk([1])
    assert not common.read(1, host_slot=0, digest=b"a")


def test_a_part_that_one_cannot_write_nobody_keeps(pair: Pair) -> None:
    """A purge could not reach it: the scheduler takes the block for dropped."""
    common, parts, _ = pair
    goes_on = threading.Event()
    common.spill([(0, 0), (1, 1)])
    blocked = [part._disk._writer.submit(goes_on.wait, 5.0) for part in parts]  # type: ignore[union-attr]
    assert common.write(0, disk_slot=0, digest=b"a")
    assert not common.write(1, disk_slot=1, digest=b"b")
    goes_on.set()
    for part, each in zip(parts, blocked, strict=True):
        each.result()
        part.flush()
        assert not part.read(1, host_slot=3, digest=b"b")
    assert common.read(0, host_slot=3, digest=b"a")


def test_writes_that_fail_on_one_rank_are_counted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    common, parts, _ = pair
    assert common.n_failed_writes == 0
    assert parts[1]._disk is not None
    monkeypatch.setattr(parts[1]._disk, "_store", lambda slot, data: parts[1]._disk._failed("full"))  # type: ignore[union-attr]
    assert common.write(0, disk_slot=0, digest=b"a")
    parts[1].flush()
    assert not common.read(0, host_slot=1, digest=b"a")
    assert common.n_failed_writes == 1
