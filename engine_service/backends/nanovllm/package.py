"""What of nano-vllm is used, adapted where it must be: the only file that imports it.

Four things are other than in the package, each by a subclass or for the time of one call:
- prefixes are found under their tenant's salt only, and by a digest that nobody can collide
  (nano-vllm's is xxHash64 over the tokens, for which collisions can be made at will);
- ``torch.distributed`` meets itself in a store inside this process, not on port 2333, where a
  second engine on the machine would fail;
- the KV pool gets the number of blocks that it should have, not a share of the GPU's memory;
- preemptions are counted, and a sequence can be ended from outside.
``check_isolation`` runs at every start: a version of the package in which the first no longer
holds is refused.
"""

import hashlib
import importlib.metadata
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed
from nanovllm.config import Config
from nanovllm.engine import model_runner
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence as NanoSequence
from nanovllm.engine.sequence import SequenceStatus
from nanovllm.sampling_params import SamplingParams

from engine_service.errors import ModelError

_DIGEST_BYTES: Final = 16


class TenantSequence(NanoSequence):
    """A sequence that knows whose it is; its end is the adapter's to see, save for its length."""

    def __init__(
        self,
        token_ids: list[int],
        *,
        temperature: float,
        max_tokens: int,
        salt: str,
        tags: tuple[str, ...],
    ) -> None:
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True)
        super().__init__(token_ids, params)
        self.salt_digest = hashlib.blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest()
        self.tags = tags


class TenantBlockManager(BlockManager):
    """Finds a prefix only under the salt under which it was computed, and forgets by tag.

    Each method that walks a hash chain knows its sequence, and ``compute_hash``, which it calls,
    does not: the sequence's salt is kept for that time. Called at any other time it raises.
    """

    def __init__(self, n_blocks: int, block_size: int) -> None:
        super().__init__(n_blocks, block_size)
        self._chain_start: bytes | None = None
        self._tags: dict[int, set[str]] = {}

    def compute_hash(self, token_ids: list[int], prefix: int = -1) -> int:
        if self._chain_start is None:
            raise RuntimeError("nano-vllm hashes a block of a sequence that nobody knows")
        parent = self._chain_start if prefix == -1 else prefix.to_bytes(_DIGEST_BYTES, "little")
        content = parent + array("q", token_ids).tobytes()
        digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
        return int.from_bytes(digest, "little")

    def can_allocate(self, seq: TenantSequence) -> int:
        with self._chain_of(seq):
            return int(super().can_allocate(seq))

    def allocate(self, seq: TenantSequence, num_cached_blocks: int) -> None:
        with self._chain_of(seq):
            super().allocate(seq, num_cached_blocks)
        for block in seq.block_table[:num_cached_blocks]:
            self._tags.setdefault(block, set()).update(seq.tags)
        for block in seq.block_table[num_cached_blocks:]:
            self._tags.pop(block, None)

    def may_append(self, seq: TenantSequence) -> None:
        n_before = len(seq.block_table)
        super().may_append(seq)
        for block in seq.block_table[n_before:]:
            self._tags.pop(block, None)

    def hash_blocks(self, seq: TenantSequence) -> None:
        with self._chain_of(seq):
            super().hash_blocks(seq)
        first = seq.num_cached_tokens // self.block_size
        last = (seq.num_cached_tokens + seq.num_scheduled_tokens) // self.block_size
        for block in seq.block_table[first:last]:
            self._tags.setdefault(block, set()).update(seq.tags)

    def purge(self, tag: str) -> list[int]:
        """Make every block of a tag unfindable; return these blocks, also those that are held.

        A held block keeps its digest: the chain of the sequence that goes on with it hangs on it.
        """
        blocks = sorted(block for block, tags in self._tags.items() if tag in tags)
        for number in blocks:
            block = self.blocks[number]
            if self.hash_to_block_id.get(block.hash) == number:
                del self.hash_to_block_id[block.hash]
            block.token_ids = []
            if not self.is_held(number):
                block.hash = -1
            del self._tags[number]
        return blocks

    def is_held(self, block: int) -> bool:
        return block in self.used_block_ids

    @contextmanager
    def _chain_of(self, seq: TenantSequence) -> Iterator[None]:
        self._chain_start = seq.salt_digest
        try:
            yield
        finally:
            self._chain_start = None


class EndableScheduler(Scheduler):
    """nano-vllm's policy. Ends of sequence are not its to see: it knows one id, and models have
    several."""

    block_manager: TenantBlockManager

    def __init__(self, config: Any, *, max_sequences: int) -> None:
        super().__init__(config)
        self.block_manager = TenantBlockManager(
            config.num_kvcache_blocks, config.kvcache_block_size
        )
        self.max_num_seqs = max_sequences
        self.n_preemptions = 0

    def preempt(self, seq: TenantSequence) -> None:
        self.n_preemptions += 1
        super().preempt(seq)

    def end(self, seq: TenantSequence) -> None:
        """Take a sequence out, wherever it stands, also half scheduled by a step that raised."""
        for line in (self.running, self.waiting):
            if seq in line:
                line.remove(seq)
        self.block_manager.deallocate(seq)
        seq.status = SequenceStatus.FINISHED


class PooledRunner(ModelRunner):
    """nano-vllm's model runner with a KV pool of the size that it is told."""

    def __init__(self, config: Any, *, n_blocks: int | None) -> None:
        self._n_blocks = n_blocks  # None: what the share of memory in ``config`` leaves
        with private_rendezvous():
            super().__init__(config, 0, [])

    def allocate_kv_cache(self) -> None:
        if self._n_blocks is not None:
            self.config.gpu_memory_utilization = self._share_of(self._n_blocks)
        super().allocate_kv_cache()

    def _share_of(self, n_blocks: int) -> float:
        """Return the share of the GPU's memory that, less what is used, leaves so many blocks, and
        half of one for what others on the GPU do meanwhile."""
        free, total = torch.cuda.mem_get_info()
        stats = torch.cuda.memory_stats()
        peak, current = (stats[f"allocated_bytes.all.{name}"] for name in ("peak", "current"))
        wanted = (n_blocks + 0.5) * self._block_bytes()
        return float((wanted + total - free + peak - current) / total)

    def clear(self, blocks: Sequence[int]) -> None:
        """Overwrite what blocks hold."""
        numbers = torch.tensor(blocks, dtype=torch.int64, device=self.kv_cache.device)
        self.kv_cache.index_fill_(2, numbers, 0.0)

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # an error of a kernel stays with its process for good
            return True
        return False

    def _block_bytes(self) -> int:
        shape = self.config.hf_config
        n_values = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
        return int(n_values * self.block_size * shape.dtype.itemsize)


class _PrivateDistributed:
    """``torch.distributed``, but that a process group of one begins in memory."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)

    def init_process_group(self, backend: str, _: str, *, world_size: int, rank: int) -> None:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, world_size=world_size, rank=rank)


@contextmanager
def private_rendezvous() -> Iterator[None]:
    """While it is open, nano-vllm's runner starts its process group without a port.

    The address stands in the runner's constructor and is no argument of it; its module's name
    ``dist`` is all that is replaced.
    """
    model_runner.dist = _PrivateDistributed()
    try:
        yield
    finally:
        model_runner.dist = torch.distributed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What nano-vllm is told. memory_fraction: of the GPU's, where the pool has no size of its
    own."""

    block_size: int
    max_sequences: int
    max_batched_tokens: int
    max_model_len: int
    memory_fraction: float = 0.9


def make_config(model_dir: str, *, sizes: Sizes, dtype: torch.dtype, rope_theta: float) -> Any:
    """Return nano-vllm's configuration of a model.

    Raises:
        ModelError: this pair of nano-vllm and transformers reads the model's rotary base otherwise.
    """
    # Its graphs are of 1, 2, 4, 8 and every 16 sequences; a batch between its largest graph and
    # its largest batch would find none.
    n_graphed = -(-sizes.max_sequences // 16) * 16
    config = Config(
        model_dir,
        max_num_batched_tokens=sizes.max_batched_tokens,
        max_num_seqs=n_graphed,
        max_model_len=sizes.max_model_len,
        kvcache_block_size=sizes.block_size,
        gpu_memory_utilization=sizes.memory_fraction,
    )
    described = config.hf_config
    described.dtype = dtype
    described.rope_theta = rope_theta  # transformers 5 keeps it elsewhere
    # As its Qwen3DecoderLayer reads it.
    theta = getattr(described, "rope_theta", 1_000_000)
    scaling = getattr(described, "rope_scaling", None)
    theta = scaling.get("rope_theta", theta) if isinstance(scaling, dict) else theta
    if theta != rope_theta:
        raise ModelError(
            f"backend nanovllm would take {theta} for the model's rope_theta, which is {rope_theta}"
        )
    return config


def make_scheduler(config: Any, *, max_sequences: int) -> EndableScheduler:
    """Return a scheduler with an empty pool of ``config.num_kvcache_blocks``."""
    NanoSequence.block_size = config.kvcache_block_size
    scheduler = EndableScheduler(config, max_sequences=max_sequences)
    check_isolation(config.kvcache_block_size)
    return scheduler


def check_isolation(block_size: int) -> None:
    """Try on a pool of its own that a prefix is found by who may find it, and by nobody else.

    Raises:
        ModelError: in this version of nano-vllm it is otherwise.
    """
    blocks = TenantBlockManager(4, block_size)

    def make(salt: str) -> TenantSequence:
        tokens = [7] * (block_size + 1)
        return TenantSequence(tokens, temperature=1.0, max_tokens=1, salt=salt, tags=(salt,))

    owner = make("owner")
    blocks.allocate(owner, blocks.can_allocate(owner))
    owner.num_scheduled_tokens = len(owner)
    blocks.hash_blocks(owner)
    found = {salt: blocks.can_allocate(make(salt)) for salt in ("owner", "other", "")}
    n_purged, n_found_then = len(blocks.purge("owner")), blocks.can_allocate(make("owner"))
    if (found, n_purged, n_found_then) != ({"owner": 1, "other": 0, "": 0}, 1, 0):
        raise ModelError(
            "backend nanovllm: in this version of nano-vllm prefixes cannot be kept apart by tenant"
        )


def package_version() -> str:
    try:
        return importlib.metadata.version("nano-vllm")
    except importlib.metadata.PackageNotFoundError:  # a folder on the path
        return "of no known version"
