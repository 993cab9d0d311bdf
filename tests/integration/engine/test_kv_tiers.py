"""A real model over tiny pools: the same tokens with tiers as without, whatever becomes of them."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import EngineError, ModelError
from engine_service.protocol import SamplingParams, TierStats
from engine_service.runner.kv_cache import KVCache
from engine_service.runner.kv_disk import DiskBlocks
from engine_service.runner.kv_tiers import KVTiers
from tests.compiled import compiled_library
from tests.integration.engine.backend import run, tokens
from tests.unit.engine.test_kv_cache import CONFIG

BLOCK_BYTES = 2 * 16 * 2 * 2 * 16 * 4  # layers, tokens, K and V, heads, head_dim, float32
N_BLOCKS = 8


def make_backend(
    model_dir: Path, *, n_host: int = 0, disk: Path | None = None, kernels: Any = "reference"
) -> NativeBackend:
    """kernels: ``torch`` runs as on a GPU, a step being launched while another is computed."""
    settings: dict[str, Any] = {}
    if disk is not None:
        settings = {"disk_kv_cache_bytes": 64 * (BLOCK_BYTES + 16), "kv_cache_dir": disk}
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            dtype="float32",
            kernels=kernels,
            kv_cache_tokens=16 * N_BLOCKS,
            host_kv_cache_bytes=n_host * BLOCK_BYTES,
            **settings,
        )
    )


def make_request(
    key: int, *, first: int, salt: str = "acme", n_prompt: int = 70, n_tokens: int = 4
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple((first + 7 * i) % 250 for i in range(n_prompt)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_new_tokens=n_tokens,
        cache_salt=salt,
        cache_tags=(salt, f"person-{first}"),
    )


def random_requests() -> list[EngineRequest]:
    """24 of two tenants, of one answer or two, whose prompts often begin alike."""
    rng = random.Random(3)
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple((rng.choice((1, 2)) and i) % 250 for i in range(length)),
            sampling=SamplingParams(temperature=0.0, ignore_eos=True, n=rng.choice((1, 1, 2))),
            max_new_tokens=rng.randint(1, 20),
            cache_salt=rng.choice("ab"),
        )
        for key, length in enumerate(rng.choices(range(1, 90), k=24))
    ]


def answers(backend: NativeBackend, *requests: EngineRequest) -> list[tuple[list[int], int]]:
    """The tokens of each, run one after the other, and how many of its prompt were cached."""
    found = []
    for request in requests:
        outputs = run(backend, request)[request.key]
        assert outputs[-1].error is None
        found.append((tokens(outputs), outputs[-1].n_cached_tokens))
    return found


def tiers(backend: NativeBackend) -> TierStats:
    stats = backend.stats().tiers
    assert stats is not None
    return stats


def flush(backend: NativeBackend) -> None:
    store = backend._runner._tiers
    assert store is not None
    store.flush()


def disk_of(backend: NativeBackend) -> DiskBlocks:
    store = backend._runner._tiers
    assert store is not None
    assert store._disk is not None
    return store._disk


FIVE = [make_request(key, first=10 * key) for key in range(5)]  # of 5 blocks each, 4 of them full
FOUR_MORE = [make_request(key, first=10 * key) for key in range(5, 9)]
KERNELS = ["reference", "torch"]
# A step may spill as many as a request needs, and load as many as are known: more than these 9.
N_FEW = 10
N_MANY = 32


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[list[int]]:
    backend = make_backend(model_dir)
    assert backend.stats().tiers is None
    return [found for found, _ in answers(backend, *FIVE)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("n_host", "has_disk", "hit_by"),
    [(N_MANY, False, "host"), (N_MANY, True, "host"), (N_FEW, True, "disk")],
)
def test_what_was_evicted_is_not_computed_again(
    model_dir: Path,
    tmp_path: Path,
    expected: list[list[int]],
    n_host: int,
    has_disk: bool,
    hit_by: str,
    kernels: str,
) -> None:
    disk = tmp_path / "kv" if has_disk else None
    backend = make_backend(model_dir, n_host=n_host, disk=disk, kernels=kernels)
    assert answers(backend, *FIVE) == [(found, 0) for found in expected]
    again = answers(backend, *FIVE)
    assert again == [(found, 64) for found in expected]
    stats = tiers(backend)
    n_hits = {"host": stats.n_host_hits, "disk": stats.n_disk_hits}
    assert n_hits[hit_by] >= 8
    assert stats.n_spilled > 0
    assert stats.host_bytes <= stats.host_bytes_total == n_host * BLOCK_BYTES
    assert (stats.n_written > 0) == (hit_by == "disk")
    assert stats.n_dropped == 0
    assert backend.stats().n_cached_tokens == 5 * 64


def test_the_disk_alone_gives_back_what_it_was_given(
    model_dir: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    backend = make_backend(model_dir, n_host=N_FEW, disk=tmp_path)
    answers(backend, *FIVE, *FOUR_MORE)
    flush(backend)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    assert answers(backend, FIVE[0]) == [(expected[0], 64)]
    assert (tiers(backend).n_disk_hits, tiers(backend).n_host_hits) == (4, 0)


def test_another_tenant_finds_nothing(model_dir: Path, expected: list[list[int]]) -> None:
    backend = make_backend(model_dir, n_host=N_MANY)
    answers(backend, *FIVE)
    other = make_request(9, first=0, salt="other")
    assert answers(backend, other) == [(expected[0], 0)]
    assert tiers(backend).n_host_hits == 0


@pytest.mark.parametrize("n_host", [N_MANY, N_FEW])
def test_a_purge_reaches_every_tier(
    model_dir: Path, tmp_path: Path, expected: list[list[int]], n_host: int
) -> None:
    backend = make_backend(model_dir, n_host=n_host, disk=tmp_path)
    answers(backend, *FIVE)
    assert backend.purge("person-10") == 4
    assert answers(backend, FIVE[1]) == [(expected[1], 0)]
    assert answers(backend, FIVE[0], FIVE[2]) == [(expected[0], 64), (expected[2], 64)]
    backend.purge("acme")
    flush(backend)
    stats = tiers(backend)
    assert (stats.host_bytes, stats.disk_bytes, backend.stats().n_blocks_cached) == (0, 0, 0)
    store = backend._runner._tiers
    assert store is not None
    assert not any(piece.any() for piece in store._pieces)
    disk = disk_of(backend)
    assert not any(os.pread(disk._file.fileno(), 2**24, 0))
    assert answers(backend, *FIVE) == [(found, 0) for found in expected]


@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_a_damaged_file_is_a_miss(
    model_dir: Path, tmp_path: Path, expected: list[list[int]], damage: str
) -> None:
    backend = make_backend(model_dir, n_host=N_FEW, disk=tmp_path)
    answers(backend, *FIVE, *FOUR_MORE)
    flush(backend)
    file = disk_of(backend)._file.fileno()
    if damage == "cut off":
        os.ftruncate(file, BLOCK_BYTES // 2)
    else:
        for start in range(0, os.fstat(file).st_size, BLOCK_BYTES + 16):
            byte = os.pread(file, 1, start + 100)
            os.pwrite(file, bytes([byte[0] ^ 1]), start + 100)
    assert answers(backend, FIVE[0]) == [(expected[0], 0)]
    stats = tiers(backend)
    assert (stats.n_unreadable, stats.n_disk_hits) == (1, 0)
    assert [found for found, _ in answers(backend, *FIVE)] == expected
    assert backend.stats().n_failed == 0


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_preempted_sequence_finds_its_blocks_in_host_memory(
    model_dir: Path, kernels: str
) -> None:
    """Two that fit the pool alone and not together."""
    pair = [make_request(key, first=100 + key, n_prompt=20, n_tokens=90) for key in range(2)]
    roomy = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32", kernels="reference"))
    plain = make_backend(model_dir, kernels=kernels)
    tiered = make_backend(model_dir, n_host=N_MANY, kernels=kernels)
    found = []
    for backend in (roomy, plain, tiered):
        outputs = run(backend, *pair)
        found.append([tokens(outputs[request.key]) for request in pair])
    assert found[0] == found[1] == found[2]
    assert plain.stats().n_preemptions > 0
    assert tiered.stats().n_preemptions > 0
    assert tiers(tiered).n_host_hits >= 2


@pytest.mark.parametrize("kernels", KERNELS)
def test_random_requests_in_company_get_what_they_get_alone(
    model_dir: Path, tmp_path: Path, kernels: str
) -> None:
    requests = random_requests()
    roomy = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32", kernels="reference"))
    tight = make_backend(model_dir, n_host=4, disk=tmp_path, kernels=kernels)
    alone = {request.key: tokens(run(roomy, request)[request.key]) for request in requests}
    for start in range(0, 24, 6):
        outputs = run(tight, *requests[start : start + 6])
        for request in requests[start : start + 6]:
            assert sorted(tokens(outputs[request.key])) == sorted(alone[request.key])
    stats = tiers(tight)
    assert min(stats.n_host_hits, stats.n_disk_hits, stats.n_host_evictions) > 0


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_step_that_fails_leaves_no_wrong_content(
    model_dir: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    backend = make_backend(model_dir, n_host=N_MANY, kernels=kernels)
    answers(backend, *FIVE)
    store = backend._runner._tiers
    assert store is not None
    for name in ("spill", "load"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, lambda pairs: pytest.fail("a fault"))
            backend.add(FIVE[0])
            with pytest.raises(BaseException, match="a fault"):
                backend.step()
            (output,) = backend.fail_running(EngineError("a fault"))
            assert output.error is not None
        assert [found for found, _ in answers(backend, *FIVE)] == expected


# -- what holds the bytes ----------------------------------------------------------------------


def filled_cache(n_blocks: int, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(CONFIG, n_blocks=n_blocks, block_size=16, dtype=dtype)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape))
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_come_back_bit_by_bit_through_memory_and_disk(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    cache = filled_cache(40, dtype)
    n_bytes = cache.pool.block_bytes
    before = [layer.clone() for layer in cache.layers]
    disk = DiskBlocks(tmp_path, n_slots=40, block_bytes=n_bytes, max_waiting=40)
    store = KVTiers(cache.pool, n_host_slots=40, disk=disk)
    store.spill([(block, 39 - block) for block in range(40)])
    for layer in cache.layers:
        layer.fill_(float("nan"))
    for slot in range(40):
        assert store.write(slot, disk_slot=slot, digest=bytes([slot]))
    store.erase_host(range(40))
    store.flush()
    for slot in range(40):
        assert store.read(slot, host_slot=(slot + 3) % 40, digest=bytes([slot]))
    store.load([((39 - block + 3) % 40, block) for block in range(40)])
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer, old)


def test_nothing_readable_is_on_disk_and_a_digest_opens_its_own_block_alone(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path, n_slots=2, block_bytes=64)
    text, into = b"what the prompt said" + bytes(44), bytearray(64)
    assert disk.put(0, memoryview(text), digest=b"a")
    assert disk.put(1, memoryview(text), digest=b"b")
    disk.flush()
    data = os.pread(disk._file.fileno(), 1000, 0)
    assert len(data) == 2 * 80
    assert text[:20] not in data
    assert data[:80] != data[80:]
    assert not disk.get(0, digest=b"b", into=memoryview(into))
    assert into == bytes(64)
    assert disk.get(0, digest=b"a", into=memoryview(into))
    assert into == text
    os.pwrite(disk._file.fileno(), data[80:], 0)  # another's bytes in its place
    assert not disk.get(0, digest=b"a", into=memoryview(into))


def test_what_waits_to_be_written_is_bounded_and_can_be_read_and_erased(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path, n_slots=4, block_bytes=4, max_waiting=2)
    held = disk._writer.submit(time.sleep, 0.3)
    assert disk.put(0, memoryview(b"aaaa"), digest=b"a")
    assert disk.put(1, memoryview(b"bbbb"), digest=b"b")
    assert not disk.put(2, memoryview(b"cccc"), digest=b"c")
    assert disk.put(1, memoryview(b"dddd"), digest=b"d")  # in place of another that waits
    into = bytearray(4)
    assert disk.get(1, digest=b"d", into=memoryview(into))
    assert into == b"dddd"
    disk.erase([0])
    assert not held.done()
    disk.flush()
    assert not disk.get(0, digest=b"a", into=memoryview(into))
    assert not disk.get(1, digest=b"b", into=memoryview(into))
    assert disk.get(1, digest=b"d", into=memoryview(into))
    assert disk.n_failed_writes == 0


def test_a_full_disk_drops_blocks_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    disk = DiskBlocks(tmp_path, n_slots=4, block_bytes=4)
    monkeypatch.setattr(os, "pwrite", full)
    for slot in range(2):
        assert disk.put(slot, memoryview(b"aaaa"), digest=b"a")
    disk.flush()
    assert disk.n_failed_writes == 2
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.text
    assert not disk.get(0, digest=b"a", into=memoryview(bytearray(4)))


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["compiled", "auto"])
def test_the_compiled_kernels_refuse_tiers_by_name(model_dir: Path, kernels: Any) -> None:
    compiled_library()
    with pytest.raises(ModelError, match="host_kv_cache_bytes needs a KV pool that can be copied"):
        NativeBackend(EngineConfig(model_dir=model_dir, kernels=kernels, host_kv_cache_bytes=2**20))


def test_tiers_that_cannot_be_had_are_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"host_kv_cache_bytes \(100\) must hold at least one"):
        NativeBackend(
            EngineConfig(model_dir=model_dir, kernels="reference", host_kv_cache_bytes=100)
        )
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ModelError, match=r"kv_cache_dir .*file cannot be used"):
        make_backend(model_dir, n_host=2, disk=file)
