"""Runs a batch through the model: tensors in, one token id per sampled sequence out."""

from collections.abc import Sequence as SequenceOf

import torch

from engine_service.layers.decoder import Decoder
from engine_service.runner.input_builder import build_step_input
from engine_service.runner.kv_cache import KVCache
from engine_service.runner.sampler import SampleRow, sample
from engine_service.scheduling.batch import Batch


class ModelRunner:
    """Owns the KV cache's content; which block is whose is the scheduler's business."""

    def __init__(
        self, model: Decoder, *, kv_cache: KVCache, block_size: int, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._block_size = block_size
        self._dtype = dtype

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[int | None]:
        """Return the ids for ``batch.sampled``; None where the logits are not finite."""
        step = build_step_input(batch, block_size=self._block_size, dtype=self._dtype)
        logits = self._model.forward(step, caches=self._kv_cache.layers)
        rows = [
            SampleRow(params=seq.sampling, seed=seq.seed, n_generated=seq.n_generated)
            for seq in batch.sampled
        ]
        return sample(logits, rows=rows) if rows else []

    @torch.inference_mode()
    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""
        self._kv_cache.clear(blocks)
