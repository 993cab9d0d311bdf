"""The bytes of blocks below the KV pool: host memory, pinned where a device copies from it, and
disk. What is kept where, and for how long, is ``scheduling.tiers``' to say."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.tiers import BlockStore

if TYPE_CHECKING:
    from engine_service.runner.kv_disk import DiskBlocks

# torch rounds pinned memory up to a power of two: in pieces of that size little of it is wasted.
_PIECE_BYTES: Final = 2**30
# Bounds what a device needs beside the pool while blocks are gathered.
_BLOCKS_AT_A_TIME: Final = 16

NEEDS_POOL: Final = (
    "host_kv_cache_bytes needs a KV pool that can be copied from; that of the compiled kernels "
    "cannot: set kernels to reference, or host_kv_cache_bytes to 0"
)

Pairs = SequenceOf[tuple[int, int]]


class TierStore(BlockStore, Protocol):
    """What ``scheduling.tiers.Tiers`` holds blocks with, and moves them by before a step."""

    def spill(self, pairs: Pairs) -> None:
        """Copy blocks of the pool to host slots; each pair is from and to."""

    def load(self, pairs: Pairs) -> None:
        """Copy host slots to blocks of the pool; each pair is from and to."""


class BlockPool:
    """The bytes of a KV pool's blocks, all layers of a block together. Nothing waits for a device.

    tensor: the whole pool, contiguous; its dimension ``dim``, not the last one, counts blocks.
    """

    def __init__(self, tensor: Tensor, *, dim: int) -> None:
        self.device = tensor.device
        self._bytes = tensor.view(torch.uint8)
        self._dim = dim
        self._shape = self._bytes.movedim(dim, 0).shape[1:]
        self.block_bytes = self._shape.numel()

    def gather(self, blocks: SequenceOf[int]) -> Tensor:
        """Return a copy of blocks, uint8 (n, block_bytes) and contiguous, on ``device``."""
        found = self._bytes.index_select(self._dim, self._indices(blocks))
        return found.movedim(self._dim, 0).reshape(len(blocks), self.block_bytes)

    def scatter(self, blocks: SequenceOf[int], *, content: Tensor) -> None:
        """Write what ``gather`` returned into blocks."""
        content = content.view(len(blocks), *self._shape).movedim(0, self._dim)
        self._bytes.index_copy_(self._dim, self._indices(blocks), content)

    def _indices(self, blocks: SequenceOf[int]) -> Tensor:
        return torch.tensor(blocks).to(self.device, non_blocking=True)


class KVTiers:
    """Moves blocks between pool, host and disk; a ``TierStore``.

    Copies to and from a device are in the order of its stream. The processor touches host memory
    only when they are done. disk: None where there is none.
    """

    def __init__(self, pool: BlockPool, *, n_host_slots: int, disk: "DiskBlocks | None") -> None:
        self.n_host_slots = n_host_slots
        self.n_disk_slots = 0 if disk is None else disk.n_slots
        self.block_bytes = pool.block_bytes
        self._pool = pool
        self._disk = disk
        is_pinned = pool.device.type == "cuda"
        self._moved = torch.cuda.Event() if is_pinned else None  # type: ignore[no-untyped-call]
        self._per_piece = max(1, _PIECE_BYTES // pool.block_bytes)
        try:
            self._pieces = [
                torch.zeros(
                    (min(self._per_piece, n_host_slots - first), pool.block_bytes),
                    dtype=torch.uint8,
                    pin_memory=is_pinned,
                )
                for first in range(0, n_host_slots, self._per_piece)
            ]
        except RuntimeError as error:
            raise ModelError(
                f"{n_host_slots * pool.block_bytes / 2**30:,.1f} GiB of host memory cannot be had: "
                "lower host_kv_cache_bytes"
            ) from error

    @property
    def n_failed_writes(self) -> int:
        return 0 if self._disk is None else self._disk.n_failed_writes

    def spill(self, pairs: Pairs) -> None:
        for part in _parts(pairs):
            content = self._pool.gather([block for block, _ in part])
            for (_, slot), row in zip(part, content, strict=True):
                self._slot(slot).copy_(row, non_blocking=True)
        self._note_moved()

    def load(self, pairs: Pairs) -> None:
        for part in _parts(pairs):
            content = torch.empty(
                (len(part), self.block_bytes), dtype=torch.uint8, device=self._pool.device
            )
            for (slot, _), row in zip(part, content, strict=True):
                row.copy_(self._slot(slot), non_blocking=True)
            self._pool.scatter([block for _, block in part], content=content)
        self._note_moved()

    def write(self, host_slot: int, *, disk_slot: int, digest: bytes) -> bool:
        if self._disk is None:
            return False
        self._wait_until_moved()
        return self._disk.put(disk_slot, self._bytes(host_slot), digest=digest)

    def read(self, disk_slot: int, *, host_slot: int, digest: bytes) -> bool:
        if self._disk is None:
            return False
        self._wait_until_moved()
        return self._disk.get(disk_slot, digest=digest, into=self._bytes(host_slot))

    def erase_host(self, slots: SequenceOf[int]) -> None:
        self._wait_until_moved()
        for slot in slots:
            self._slot(slot).zero_()

    def erase_disk(self, slots: SequenceOf[int]) -> None:
        if self._disk is not None:
            self._disk.erase(slots)

    def flush(self) -> None:
        """Wait until what was written to disk so far is there."""
        if self._disk is not None:
            self._disk.flush()

    def _slot(self, slot: int) -> Tensor:
        return self._pieces[slot // self._per_piece][slot % self._per_piece]

    def _bytes(self, slot: int) -> memoryview:
        return self._slot(slot).numpy().data

    def _note_moved(self) -> None:
        if self._moved is not None:
            self._moved.record()

    def _wait_until_moved(self) -> None:
        if self._moved is not None:
            self._moved.synchronize()


def move_blocks(batch: Batch, *, copy: Callable[[Pairs], None], tiers: TierStore | None) -> None:
    """Do what a batch asks for before it computes, in the order that it says. copy: within the
    pool."""
    if tiers is not None and batch.spills:
        tiers.spill(batch.spills)
    if batch.copies:
        copy(batch.copies)
    if tiers is not None and batch.loads:
        tiers.load(batch.loads)


def make_tiers(config: EngineConfig, *, pool: BlockPool | None) -> KVTiers | None:
    """Make the tiers that are asked for, or a rank's part of them, which is as large as the other
    ranks'; None is none. pool: the rank's; None where it cannot be read.

    Raises ModelError where they cannot be had.
    """
    if not config.host_kv_cache_bytes:
        return None
    if pool is None:
        raise ModelError(NEEDS_POOL)
    least = config.tensor_parallel * pool.block_bytes
    n_host_slots = config.host_kv_cache_bytes // least
    if not n_host_slots:
        raise ModelError(
            f"host_kv_cache_bytes ({config.host_kv_cache_bytes}) must hold at least one block of "
            f"{least} bytes"
        )
    return KVTiers(pool, n_host_slots=n_host_slots, disk=_make_disk(config, pool=pool))


def _make_disk(config: EngineConfig, *, pool: BlockPool) -> "DiskBlocks | None":
    if not config.disk_kv_cache_bytes or config.kv_cache_dir is None:
        return None
    try:
        from engine_service.runner.kv_disk import TAG_BYTES, DiskBlocks
    except ImportError as error:
        raise ModelError(
            "disk_kv_cache_bytes needs the package cryptography: what is on disk is encrypted"
        ) from error
    least = config.tensor_parallel * (pool.block_bytes + TAG_BYTES)
    n_slots = config.disk_kv_cache_bytes // least
    if not n_slots:
        raise ModelError(
            f"disk_kv_cache_bytes ({config.disk_kv_cache_bytes}) must hold at least one block of "
            f"{least} bytes"
        )
    return DiskBlocks(config.kv_cache_dir, n_slots=n_slots, block_bytes=pool.block_bytes)


def _parts(pairs: Pairs) -> Iterator[Pairs]:
    for first in range(0, len(pairs), _BLOCKS_AT_A_TIME):
        yield pairs[first : first + _BLOCKS_AT_A_TIME]
