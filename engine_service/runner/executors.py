"""What computes a step, behind one interface: it owns the weights and the KV pool's content."""

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import torch
from torch import Tensor

from engine_service.layers.decoder import Decoder
from engine_service.runner.input_builder import build_step_input
from engine_service.runner.kv_cache import KVCache
from engine_service.runner.kv_tiers import BlockPool
from engine_service.scheduling.batch import Batch


class Executor(Protocol):
    """Driven by the step thread alone; which block is whose is the scheduler's business.

    kernels: what it computes with, for people. pool: its KV pool, None where that cannot be read.
    """

    kernels: str
    pool: BlockPool | None

    def forward(self, batch: Batch) -> Tensor:
        """Put the K and V of all tokens into their blocks; return the float32 logits of
        ``batch.logit_places()``, one row each, which the caller may change until the next step."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the content of blocks; each pair is from and to."""


class ReferenceExecutor:
    """The layers in torch, over the reference kernels; the weights of ``model`` become its own."""

    kernels = "reference"

    def __init__(
        self, model: Decoder, *, kv_cache: KVCache, block_size: int, dtype: torch.dtype
    ) -> None:
        model.pack()
        self._model = model
        self._kv_cache = kv_cache
        self.pool: BlockPool | None = kv_cache.pool
        self._block_size = block_size
        self._dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        step = build_step_input(batch, block_size=self._block_size, dtype=self._dtype)
        return self._model.forward(step, caches=self._kv_cache.layers)

    def clear(self, blocks: SequenceOf[int]) -> None:
        self._kv_cache.clear(blocks)

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        self._kv_cache.copy(pairs)
