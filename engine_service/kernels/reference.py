"""Plain torch kernels: the path that runs on any processor, and the oracle for faster ones.

The KV cache of one layer is (n_blocks, block_size, 2, n_kv_heads, head_dim): K and V of a token lie
side by side, so that one copy stores both and one gather reads both, and a compiled kernel can walk
a block table with constant strides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Rows much shorter than the longest of a group start a group of their own, unless the padding
# that this saves is fewer blocks than the extra call is worth.
_WORTHWHILE_PADDING_BLOCKS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGroup:
    """Neighbouring rows that one attention call takes together.

    tokens: their place in the step's tokens. block_ids: (n_rows * n_blocks) of the padded block
    tables. mask: added to the scores; None means plainly causal.
    """

    tokens: slice
    n_rows: int
    is_single_token: bool
    block_ids: Tensor
    context_len: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRow:
    """``n_new`` tokens at the end of a context of ``context_len``, whose K and V are stored."""

    n_new: int
    context_len: int
    block_table: Sequence[int]


def linear(x: Tensor, *, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of (n_tokens, 2 * n), gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def rotate(x: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding, halves layout, to (n_tokens, n_heads, head_dim).

    cos, sin: (n_tokens, 1, head_dim), ``sin`` negative in its first half.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def store_kv(kv: Tensor, *, cache: Tensor, slots: Tensor) -> None:
    """Write (n_tokens, 2, n_kv_heads, head_dim) to the cache's ``slots``."""
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, kv)


def plan_attention(
    rows: Sequence[AttentionRow], *, block_size: int, dtype: torch.dtype
) -> tuple[AttentionGroup, ...]:
    """Group a step's rows, single tokens first by length, for ``paged_attention``; once a step."""
    n_single = sum(row.n_new == 1 for row in rows)
    groups = []
    for start, end in _single_token_spans(rows[:n_single], block_size=block_size):
        groups.append(_single_token_group(rows[start:end], start=start, dtype=dtype))
    start = n_single
    for row in rows[n_single:]:
        groups.append(_many_token_group(row, start=start, dtype=dtype))
        start += row.n_new
    return tuple(groups)


def paged_attention(
    q: Tensor, *, cache: Tensor, groups: Sequence[AttentionGroup], scale: float
) -> Tensor:
    """Return (n_tokens, n_heads * head_dim) of attention over each row's blocks."""
    n_blocks, _, _, n_kv_heads, head_dim = cache.shape
    by_block = cache.view(n_blocks, -1)
    outputs = []
    for group in groups:
        kv = by_block.index_select(0, group.block_ids).view(
            group.n_rows, -1, 2, n_kv_heads, head_dim
        )
        kv = kv[:, : group.context_len].permute(2, 0, 3, 1, 4)
        queries = q[group.tokens]
        if group.is_single_token:
            # The query heads of one K/V head stand as its rows: one product instead of several.
            queries = queries.view(group.n_rows, n_kv_heads, -1, head_dim)
        else:
            queries = queries.transpose(0, 1).unsqueeze(0)
        attended = functional.scaled_dot_product_attention(
            queries,
            kv[0],
            kv[1],
            attn_mask=group.mask,
            is_causal=group.mask is None,
            scale=scale,
            enable_gqa=not group.is_single_token,
        )
        if not group.is_single_token:
            attended = attended.transpose(1, 2)
        outputs.append(attended.reshape(-1, q.shape[1] * head_dim))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _single_token_spans(rows: Sequence[AttentionRow], *, block_size: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    end = len(rows)
    while end:
        most = -(-rows[end - 1].context_len // block_size)
        start = end - 1
        while start:
            n_blocks = -(-rows[start - 1].context_len // block_size)
            worthwhile = start * (most - n_blocks) > _WORTHWHILE_PADDING_BLOCKS
            if n_blocks * 2 < most and worthwhile:
                break
            start -= 1
        spans.append((start, end))
        end = start
    return spans[::-1]


def _single_token_group(
    rows: Sequence[AttentionRow], *, start: int, dtype: torch.dtype
) -> AttentionGroup:
    context_len = rows[-1].context_len
    n_blocks = max(len(row.block_table) for row in rows)
    padded = [
        [*row.block_table, *([row.block_table[-1]] * (n_blocks - len(row.block_table)))]
        for row in rows
    ]
    lengths = torch.tensor([row.context_len for row in rows])
    outside = torch.arange(context_len) >= lengths[:, None]
    mask = torch.zeros(outside.shape, dtype=dtype).masked_fill_(outside, float("-inf"))
    return AttentionGroup(
        tokens=slice(start, start + len(rows)),
        n_rows=len(rows),
        is_single_token=True,
        block_ids=torch.tensor(padded).view(-1),
        context_len=context_len,
        mask=mask[:, None, None, :],
    )


def _many_token_group(row: AttentionRow, *, start: int, dtype: torch.dtype) -> AttentionGroup:
    mask = None
    if row.n_new < row.context_len:
        future = torch.ones(row.n_new, row.context_len, dtype=torch.bool).triu_(
            row.context_len - row.n_new + 1
        )
        mask = torch.zeros(future.shape, dtype=dtype).masked_fill_(future, float("-inf"))
    return AttentionGroup(
        tokens=slice(start, start + row.n_new),
        n_rows=1,
        is_single_token=False,
        block_ids=torch.tensor(row.block_table),
        context_len=row.context_len,
        mask=mask,
    )
