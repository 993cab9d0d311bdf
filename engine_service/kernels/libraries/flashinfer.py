"""FlashInfer over our KV pool, which is its layout "HND" with pages of a block: (n_blocks,
n_kv_heads, page_size, head_dim).

Its wrapper for decoding plans on the host, from lengths that a graph may not ask for. Decoding
therefore goes through its function that takes block tables and plans nothing (XQA on Hopper,
TensorRT-LLM's kernels on Blackwell). Prompts go through the wrapper: their steps are no graphs, and
the host knows their lengths.
"""

from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows
from engine_service.kernels.libraries.importing import function_of, import_first
from engine_service.kernels.paged_attention import AttentionShape

_LAYOUT: Final = "HND"
_WORKSPACE_BYTES: Final = 128 * 2**20  # what its documentation says
# A plan is copied to the device from memory that the next one overwrites, without waiting: a
# wrapper plans again so many steps later, and two may be in flight.
_N_WRAPPERS: Final = 3


class FlashInfer:
    name = "flashinfer"

    def __init__(self, shape: AttentionShape) -> None:
        """Raises UnfitError."""
        module = import_first(("flashinfer",), library=self.name)
        decoding = import_first(("flashinfer.decode",), library=self.name)
        wrapper = function_of(module, "BatchPrefillWithPagedKVCacheWrapper", library=self.name)
        self._decode = function_of(decoding, "trtllm_batch_decode_with_kv_cache", library=self.name)
        self._shape = shape
        # Of zeros before their first use, and apart: decoding keeps counters in its own.
        self._decode_workspace, prefill_workspace = (
            torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=shape.device) for _ in range(2)
        )
        self._wrappers: list[Any] = [
            wrapper(prefill_workspace, _LAYOUT) for _ in range(_N_WRAPPERS)
        ]
        self._planned: PagedRows | None = None

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        found: Tensor = self._decode(
            query=q.contiguous(),
            kv_cache=(_by_head(k_cache), _by_head(v_cache)),
            workspace_buffer=self._decode_workspace,
            block_tables=rows.block_tables,
            seq_lens=rows.context_lens,
            max_seq_len=rows.block_tables.shape[1] * self._shape.block_size,
            bmm1_scale=scale,
            bmm2_scale=1.0,
            kv_layout=_LAYOUT,
        )
        return found.view(len(q), -1)

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        if rows is not self._planned:
            self._plan(rows, scale=scale)
        found: Tensor = self._wrappers[0].run(q, (_by_head(k_cache), _by_head(v_cache)))
        return found.view(len(q), -1)

    def _plan(self, rows: PagedRows, *, scale: float) -> None:
        """Have the next wrapper plan a step: all from the host, so that nothing waits for the
        device."""
        assert rows.host is not None
        shape, lengths = self._shape, rows.host.context_lens
        n_pages = [-(-length // shape.block_size) for length in lengths]
        self._wrappers.append(self._wrappers.pop(0))
        self._wrappers[0].plan(
            _ints(rows.host.query_starts),
            _ints([0, *accumulate(n_pages)]),
            _used_pages(rows.block_tables, n_pages=n_pages),
            _ints([(length - 1) % shape.block_size + 1 for length in lengths]),
            shape.n_heads,
            shape.n_kv_heads,
            shape.head_dim,
            shape.block_size,
            causal=True,
            sm_scale=scale,
            q_data_type=shape.dtype,
            kv_data_type=shape.kv_dtype,
        )
        self._planned = rows


def _by_head(cache: Tensor) -> Tensor:
    """Return the pool's own order of a view (n_blocks, block_size, n_kv_heads, head_dim)."""
    return cache.transpose(1, 2)


def _ints(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _used_pages(block_tables: Tensor, *, n_pages: list[int]) -> Tensor:
    """Return the blocks of all rows, one row's behind the other's."""
    columns = torch.arange(block_tables.shape[1])
    is_used = columns < torch.tensor(n_pages)[:, None]
    places = is_used.flatten().nonzero()[:, 0].to(block_tables.device, non_blocking=True)
    return block_tables.flatten().index_select(0, places)
