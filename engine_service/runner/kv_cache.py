"""The tensors behind the KV pool's blocks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.runner.kv_tiers import BlockPool


class KVCache:
    """One cache a layer, in the layout that ``kernels.reference`` describes.

    Zeros, so that the operating system gives memory only as blocks are first used. Raises
    ModelError where not even the addresses are to be had.
    """

    def __init__(
        self, config: ModelConfig, *, n_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layers, n_blocks, block_size, 2, config.n_kv_heads, config.head_dim)
        try:
            self._tensor = torch.zeros(shape, dtype=dtype)
        except RuntimeError as error:
            size_gib = math.prod(shape) * dtype.itemsize / 2**30
            raise ModelError(
                f"a KV pool of {n_blocks * block_size} tokens takes {size_gib:,.0f} GiB, "
                "more memory than can be had: lower kv_cache_tokens"
            ) from error
        self.layers: Sequence[Tensor] = self._tensor.unbind(0)
        self.pool = BlockPool(self._tensor, dim=1)

    def clear(self, blocks: Sequence[int]) -> None:
        """Overwrite blocks that may hold infinities: masked positions are multiplied by zero,
        which only ends them where they are finite."""
        self._tensor[:, list(blocks)] = 0

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the content of blocks; each pair is from and to, none both."""
        if pairs:
            sources, targets = zip(*pairs, strict=True)
            self._tensor[:, list(targets)] = self._tensor[:, list(sources)]
