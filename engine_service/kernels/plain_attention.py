"""Rotation and attention over a paged KV pool in plain torch, for ``device.TorchKernels``."""

import torch
from torch import Tensor


def rotated(x: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
    """Return (n_tokens, n_heads, head_dim) with each half of a head turned by the other."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def cast(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Cast as a GPU does: what is beyond the range of fp8 becomes its greatest, where torch alone
    would make it NaN."""
    if dtype == torch.float8_e4m3fn:
        most = torch.finfo(dtype).max
        x = x.clamp(-most, most)
    return x.to(dtype)


def attend(
    q: Tensor,
    *,
    starts: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Return (n_tokens, n_heads * head_dim) of the queries from ``starts[i]`` to ``starts[i + 1]``
    over the context of row i, whose last tokens they are."""
    block_size, n_kv_heads = k_cache.shape[1], k_cache.shape[2]
    n_groups = q.shape[1] // n_kv_heads
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for i, context_len in enumerate(context_lens.tolist()):
        start, end = int(starts[i]), int(starts[i + 1])
        if not context_len or start == end:
            continue
        blocks = block_tables[i, : -(-context_len // block_size)].long()
        k, v = (
            cache[blocks].flatten(0, 1)[:context_len].float().repeat_interleave(n_groups, dim=1)
            for cache in (k_cache, v_cache)
        )
        scores = torch.einsum("qhd,khd->hqk", q[start:end].float(), k) * scale
        place = torch.arange(context_len, device=q.device)
        newest = place[context_len - (end - start) :, None]
        scores = scores.masked_fill(place > newest, float("-inf"))
        out[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v).to(q.dtype)
    return out.flatten(1)
