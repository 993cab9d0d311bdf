"""Attention over nano-vllm's paged cache, by what may be there in place of flash-attn.

K and V of a pool are (n_pages, page_size, n_kv_heads, head_dim). A table, int32 (n_rows, width),
has the pages of each row; what stands behind a row's last page is any number. All of ``decode`` can
be captured in a CUDA graph.
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class Attention(Protocol):
    """name: for the result."""

    name: str

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor, table: Tensor, scale: float
    ) -> Tensor:
        """Return (n_rows, n_heads, head_dim) of one query a row; any numbers for a length of 0."""

    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        starts_q: Tensor,
        starts_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        table: Tensor | None,
    ) -> Tensor:
        """Return causal attention of (n_tokens, n_heads, head_dim) queries, the last of each row's
        keys; k and v are the pool where there is a table, else the rows' keys one after the other.
        """


class FlashAttention4:
    """The package flash-attn-4: pure Python, compiled for the device when first called."""

    name = "flash-attn-4"

    def __init__(self) -> None:
        from flash_attn.cute.interface import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor, table: Tensor, scale: float
    ) -> Tensor:
        found = self._attend(
            q.unsqueeze(1),
            k,
            v,
            seqused_k=lengths,
            page_table=table,
            softmax_scale=scale,
            causal=True,
        )
        return _output(found).squeeze(1)

    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        starts_q: Tensor,
        starts_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        table: Tensor | None,
    ) -> Tensor:
        keys = {"cu_seqlens_k": starts_k} if table is None else {"page_table": table}
        if table is not None:
            keys["seqused_k"] = starts_k.diff()
        found = self._attend(
            q,
            k,
            v,
            cu_seqlens_q=starts_q,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            softmax_scale=scale,
            causal=True,
            **keys,
        )
        return _output(found)


class TorchPaged:
    """FlashAttention-2 inside torch, where that reads block tables."""

    name = "torch's FlashAttention-2 over block tables"

    def __init__(self) -> None:
        schema = torch.ops.aten._flash_attention_forward.default._schema
        if "block_table" not in {argument.name for argument in schema.arguments}:
            raise LookupError("this torch's attention reads no block tables")

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor, table: Tensor, scale: float
    ) -> Tensor:
        n_rows = len(q)
        starts = torch.arange(n_rows + 1, dtype=torch.int32, device=q.device)
        max_k = table.shape[1] * k.shape[1]
        paged = {"seqused_k": lengths, "block_table": table}
        none = torch.zeros_like(starts)
        out, _ = torch_varlen(
            q, k, v, starts, none, 1, max_k, is_causal=False, scale=scale, **paged
        )
        return out

    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        starts_q: Tensor,
        starts_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        table: Tensor | None,
    ) -> Tensor:
        paged = {} if table is None else {"seqused_k": starts_k.diff(), "block_table": table}
        out, _ = torch_varlen(
            q, k, v, starts_q, starts_k, max_q, max_k, is_causal=True, scale=scale, **paged
        )
        return out


class PagesAsSequences:
    """FlashAttention-2 inside torch, which reads no block tables but sequences at any offset.

    Every page of every row is a sequence of its own; a row's pages are joined by their sums of
    exponentials, as flash decoding joins its splits (Dao et al. 2023, "Flash-Decoding").
    The query heads of a K/V head are that many queries, so that a page is read once for them.
    """

    name = "torch's FlashAttention-2, page by page"

    def __init__(self, varlen: Any = None) -> None:
        self._varlen = varlen or torch_varlen

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor, table: Tensor, scale: float
    ) -> Tensor:
        n_rows, n_heads, head_dim = q.shape
        _, page_size, n_kv_heads, _ = k.shape
        width, n_groups = table.shape[1], n_heads // n_kv_heads
        queries = q.view(n_rows, 1, n_kv_heads, n_groups, head_dim).transpose(2, 3)
        queries = queries.expand(-1, width, -1, -1, -1).reshape(-1, n_kv_heads, head_dim)
        pages = torch.arange(width, dtype=torch.int32, device=q.device)
        used = (lengths[:, None] - pages * page_size).clamp(0, page_size)
        starts_q = torch.arange(n_rows * width + 1, dtype=torch.int32, device=q.device) * n_groups
        starts_k = table.masked_fill(used == 0, 0).flatten() * page_size
        starts_k = torch.cat([starts_k, starts_k[:1]])  # the end of the last, which nobody reads
        out, lse = self._varlen(
            queries,
            k.flatten(0, 1),
            v.flatten(0, 1),
            starts_q,
            starts_k,
            n_groups,
            page_size,
            is_causal=False,
            scale=scale,
            seqused_k=used.flatten().int(),
        )
        lse = lse.view(n_kv_heads, n_rows, width, n_groups).permute(1, 2, 3, 0)
        lse = lse.masked_fill((used == 0)[:, :, None, None], float("-inf"))
        shares = lse.softmax(dim=1).unsqueeze(-1)
        parts = out.view(n_rows, width, n_groups, n_kv_heads, head_dim)
        joined = (parts * shares).sum(dim=1).to(q.dtype)
        return joined.transpose(1, 2).reshape(n_rows, n_heads, head_dim)

    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        starts_q: Tensor,
        starts_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        table: Tensor | None,
    ) -> Tensor:
        if table is not None:
            k, v = (gathered(x, lengths=starts_k.diff(), table=table) for x in (k, v))
        out, _ = self._varlen(
            q, k, v, starts_q, starts_k, max_q, max_k, is_causal=True, scale=scale
        )
        return out


def torch_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    is_causal: bool,
    scale: float,
    **paged: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return torch's own FlashAttention and its log-sum-exp (n_heads, n_tokens)."""
    found = torch.ops.aten._flash_attention_forward(
        q, k, v, starts_q, starts_k, max_q, max_k, 0.0, is_causal, False, scale=scale, **paged
    )
    return found[0], found[1]


def gathered(pool: Tensor, *, lengths: Tensor, table: Tensor) -> Tensor:
    """Return the rows' keys one after the other; waits for the device."""
    page_size = pool.shape[1]
    rows = [
        pool[table[i, : -(-n // page_size)].long()].flatten(0, 1)[:n]
        for i, n in enumerate(lengths.tolist())
    ]
    return torch.cat(rows)


def attend_plainly(
    q: Tensor,
    *,
    starts_q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return what attention is, in float32, row by row; zeros for a length of 0."""
    n_groups = q.shape[1] // k.shape[2]
    out = torch.zeros_like(q)
    bounds = starts_q.tolist()
    for i, length in enumerate(lengths.tolist()):
        start, end = bounds[i], bounds[i + 1]
        if not length:
            continue
        keys, values = (
            gathered(x, lengths=lengths[i : i + 1], table=table[i : i + 1])
            .float()
            .repeat_interleave(n_groups, dim=1)
            for x in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[start:end].float(), keys) * scale
        newest = torch.arange(length - (end - start), length, device=q.device)[:, None]
        later = torch.arange(length, device=q.device) > newest
        weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out


def _output(found: Any) -> Tensor:
    """Some versions return the log-sum-exp beside it."""
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output
