"""FlashAttention 3 and 4 over our KV pool, and why 2 is not used.

Both take a cache (n_blocks, page_size, n_kv_heads, head_dim) of any strides whose last is 1, and
pages of any size, so that they read the pool's views as they are. Neither plans on the host.
"""

from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows
from engine_service.kernels.libraries.importing import function_of, import_first
from engine_service.kernels.paged_attention import AttentionShape, MissingError, UnfitError

_DTYPES: Final = (torch.bfloat16, torch.float16)
_ALIGNMENT_BYTES: Final = 16


class FlashAttention3:
    """The package of hopper/ in flash-attention's repository: Hopper, and Ampere where so built."""

    name = "flash-attn 3"

    def __init__(self, shape: AttentionShape) -> None:
        """Raises UnfitError."""
        module = import_first(
            ("flash_attn_interface", "flash_attn_3.flash_attn_interface"), library=self.name
        )
        self._attend = function_of(module, "flash_attn_with_kvcache", library=self.name)
        _check(shape, name=self.name)

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        found: Tensor = self._attend(
            q.unsqueeze(1),
            k_cache,
            v_cache,
            cache_seqlens=rows.context_lens,
            page_table=rows.block_tables,
            softmax_scale=scale,
            causal=True,
        )
        return found.view(len(q), -1)

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        found: Tensor = self._attend(
            q,
            k_cache,
            v_cache,
            cache_seqlens=rows.context_lens,
            page_table=rows.block_tables,
            cu_seqlens_q=rows.query_starts,
            max_seqlen_q=rows.max_query_len,
            softmax_scale=scale,
            causal=True,
        )
        return found.view(len(q), -1)


class FlashAttention4:
    """The package flash-attn-4: Hopper and Blackwell, compiled for a shape when first called. On
    Hopper it does not split contexts, so that few rows of long ones leave most of it idle."""

    name = "flash-attn 4"

    def __init__(self, shape: AttentionShape) -> None:
        """Raises UnfitError."""
        module = import_first(("flash_attn.cute.interface",), library=self.name)
        self._attend = function_of(module, "flash_attn_varlen_func", library=self.name)
        _check(shape, name=self.name)

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        found = self._attend(
            q.unsqueeze(1),
            k_cache,
            v_cache,
            seqused_k=rows.context_lens,
            page_table=rows.block_tables,
            softmax_scale=scale,
            causal=True,
        )
        return _output(found).view(len(q), -1)

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        found = self._attend(
            q,
            k_cache,
            v_cache,
            cu_seqlens_q=rows.query_starts,
            max_seqlen_q=rows.max_query_len,
            seqused_k=rows.context_lens,
            page_table=rows.block_tables,
            softmax_scale=scale,
            causal=True,
        )
        return _output(found).view(len(q), -1)


def refuse_flash_attention_2(shape: AttentionShape) -> NoReturn:
    """Say why it is not used where it is installed. Raises UnfitError."""
    name = "flash-attn 2"
    module = import_first(("flash_attn",), library=name)
    # The package of version 4 is a part of the same name.
    if not hasattr(module, "flash_attn_with_kvcache"):
        raise MissingError(f"{name} is not installed (flash_attn has no flash_attn_with_kvcache)")
    raise UnfitError(
        f"{name} reads pages of a multiple of 256 tokens, and a block of the pool has "
        f"{shape.block_size}: prefixes would be found in steps of 256 tokens only"
    )


def _check(shape: AttentionShape, *, name: str) -> None:
    if shape.dtype not in _DTYPES:
        raise UnfitError(f"{name} computes in bfloat16 or float16, not {_named(shape.dtype)}")
    if shape.kv_dtype != shape.dtype:
        raise UnfitError(
            f"{name} reads K and V in the type of the queries, {_named(shape.dtype)}, "
            f"and kv_cache_dtype makes them {_named(shape.kv_dtype)}"
        )
    if shape.head_dim * shape.dtype.itemsize % _ALIGNMENT_BYTES:
        raise UnfitError(f"{name} takes heads of a multiple of 8, not of {shape.head_dim}")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _output(found: Any) -> Tensor:
    """Some versions return the log-sum-exp beside it."""
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output
