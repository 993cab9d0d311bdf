"""Attention of a step of few rows in one launch: norms and rotation of q and k, the store of K and
V, attention over parts of each context at once, and their sum.

A step of few rows waits for launches more than for memory; what is computed several times over to
save one is little.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from dataclasses import dataclass
from math import e, log2
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_service.kernels.device import PagedRows
from engine_service.kernels.triton.attention import split_count
from engine_service.kernels.triton.dependent_launch import is_dependent
from engine_service.kernels.triton.gpu import gpu_of

MAX_GROUP = 16
MAX_HEAD_DIM = 256
# Of K, and as much of V, which a program has in registers before it waits.
_KV_TILE_BYTES = 16 * 1024
# Products on tensor cores have no fewer rows.
_MIN_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FewRowsTiling:
    """kv_tokens: keys that a program takes at once, a power of two and at least 16. n_splits: parts
    of a context, at most."""

    kv_tokens: int
    n_splits: int
    n_warps: int = 4


def rotate_store_attend(
    qkv: Tensor,
    *,
    rotary: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rows: PagedRows,
    scale: float,
    counters: Tensor,
    tiling: FewRowsTiling | None = None,
) -> Tensor:
    """Do as ``DeviceKernels.rotate_store_attend`` says."""
    n_rows, n_all_heads, head_dim = qkv.shape
    n_kv_heads = k_cache.shape[2]
    n_heads = n_all_heads - 2 * n_kv_heads
    group = n_heads // n_kv_heads
    if group > MAX_GROUP or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"{group} query heads of {head_dim} to a K/V head are not supported")
    if tiling is None:
        max_context = rows.block_tables.shape[1] * k_cache.shape[1]
        tiling = default_tiling(qkv, n_kv_heads=n_kv_heads, max_context=max_context)
    out = torch.empty((n_rows, n_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    is_split = tiling.n_splits > 1
    parts, log_sums = out, out
    if is_split:
        shape = (n_rows, n_kv_heads, tiling.n_splits, group)
        parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=qkv.device)
        log_sums = torch.empty(shape, dtype=torch.float32, device=qkv.device)
    depends = is_dependent(qkv.device)
    meta: dict[str, Any] = {"launch_pdl": True} if depends else {}
    _attend_kernel[(n_kv_heads, n_rows, tiling.n_splits)](
        qkv,
        *qkv.stride()[:2],
        # A missing norm's pointer is not read.
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        rotary,
        rotary.stride(0),
        positions,
        slots,
        k_cache,
        *k_cache.stride()[:3],
        v_cache,
        *v_cache.stride()[:3],
        rows.block_tables,
        rows.block_tables.stride(0),
        rows.context_lens,
        parts,
        log_sums,
        counters,
        out,
        scale * log2(e),
        n_kv_heads=n_kv_heads,
        group=group,
        head_dim=head_dim,
        has_q_norm=q_norm is not None,
        has_k_norm=k_norm is not None,
        dependent=depends,
        is_split=is_split,
        block_size=k_cache.shape[1],
        query_rows=_MIN_ROWS,
        padded_dim=max(triton.next_power_of_2(head_dim), _MIN_ROWS),
        kv_tokens=tiling.kv_tokens,
        max_splits=triton.next_power_of_2(tiling.n_splits),
        num_warps=tiling.n_warps,
        # The loop keeps its next tile under way itself.
        num_stages=1,
        **meta,
    )
    return out


def default_tiling(qkv: Tensor, *, n_kv_heads: int, max_context: int) -> FewRowsTiling:
    padded_bytes = triton.next_power_of_2(qkv.shape[2]) * qkv.element_size()
    kv_tokens = min(max(_KV_TILE_BYTES // padded_bytes, 16), 64)
    n_splits = split_count(
        n_programs=len(qkv) * n_kv_heads,
        n_kv_tiles=-(-max_context // kv_tokens),
        n_processors=gpu_of(qkv.device).n_processors,
    )
    # What of float32 is at hand and under way does not fit the registers of fewer.
    n_warps = 8 if qkv.element_size() > 2 else 4
    return FewRowsTiling(kv_tokens=kv_tokens, n_splits=n_splits, n_warps=n_warps)


# Row pointers begin anywhere in a step's rows: their alignment must not compile a kernel anew.
@triton.jit(
    do_not_specialize_on_alignment=["positions", "slots", "block_tables", "context_lens"],
)
def _attend_kernel(
    qkv,
    qkv_stride,
    qkv_head_stride,
    q_norm,
    k_norm,
    eps,
    rotary,
    rotary_stride,
    positions,
    slots,
    k_cache,
    k_block_stride,
    k_token_stride,
    k_head_stride,
    v_cache,
    v_block_stride,
    v_token_stride,
    v_head_stride,
    block_tables,
    table_stride,
    context_lens,
    parts,
    log_sums,
    counters,
    out,
    scale,
    n_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    has_q_norm: tl.constexpr,
    has_k_norm: tl.constexpr,
    dependent: tl.constexpr,
    is_split: tl.constexpr,
    block_size: tl.constexpr,
    query_rows: tl.constexpr,
    padded_dim: tl.constexpr,
    kv_tokens: tl.constexpr,
    max_splits: tl.constexpr,
):
    """Grid: (n_kv_heads, n_rows, n_splits). A row's context is its older tokens, which are in the
    pool and are divided among splits, and its new one, which the last split that has work takes
    from ``qkv``: nobody reads its place in the pool. ``scale`` counts in base 2."""
    kv_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    n_splits = tl.num_programs(2)
    context_len = tl.load(context_lens + row)
    n_old = tl.maximum(context_len - 1, 0)
    split_len = tl.maximum(tl.cdiv(tl.cdiv(n_old, kv_tokens), n_splits), 1) * kv_tokens
    n_active = tl.maximum(tl.cdiv(n_old, split_len), 1)
    # Without a wait: the others, of which there is one at least, wait.
    if split >= n_active:
        return
    takes_new = (split == n_active - 1) & (context_len > 0)
    begin = split * split_len
    end = tl.minimum(begin + split_len, n_old)

    half: tl.constexpr = head_dim // 2
    dims = tl.arange(0, padded_dim)
    is_dim = dims < head_dim
    is_first = dims < half
    partners = tl.where(is_first, dims + half, dims - half)
    angles = rotary + tl.load(positions + row).to(tl.int64) * rotary_stride
    angles += tl.where(is_first, dims, dims - half)
    k_head = k_cache + kv_head.to(tl.int64) * k_head_stride
    v_head = v_cache + kv_head.to(tl.int64) * v_head_stride
    table = block_tables + row * table_stride
    keys = tl.arange(0, kv_tokens)
    is_key = begin + keys < end
    blocks = tl.load(table + (begin + keys) // block_size, mask=is_key, other=0).to(tl.int64)
    places = (begin + keys) % block_size
    inside = is_key[:, None] & is_dim[None, :]
    k_places = (blocks * k_block_stride + places * k_token_stride)[:, None] + dims[None, :]
    v_places = (blocks * v_block_stride + places * v_token_stride)[:, None] + dims[None, :]
    k = tl.load(k_head + k_places, mask=inside, other=0.0)
    v = tl.load(v_head + v_places, mask=inside, other=0.0)
    cos = tl.load(angles, mask=is_dim, other=0.0)
    sin = tl.load(angles + half, mask=is_dim, other=0.0)
    sin = tl.where(is_first, -sin, sin)
    slot = tl.load(slots + row)
    if has_q_norm:
        q_weight = tl.load(q_norm + dims, mask=is_dim, other=0.0).to(tl.float32)
        q_partner_weight = tl.load(q_norm + partners, mask=is_dim, other=0.0).to(tl.float32)
    if has_k_norm:
        k_weight = tl.load(k_norm + dims, mask=is_dim, other=0.0).to(tl.float32)
        k_partner_weight = tl.load(k_norm + partners, mask=is_dim, other=0.0).to(tl.float32)
    # As in ``linear``: or the assembler moves the loads down to where they are used.
    tl.debug_barrier()
    if dependent:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    group_rows = tl.arange(0, query_rows)
    is_query = (group_rows < group)[:, None] & is_dim[None, :]
    token = qkv + row * qkv_stride
    q_heads = token + (kv_head * group + group_rows)[:, None] * qkv_head_stride
    new_k = token + (n_kv_heads * group + kv_head) * qkv_head_stride
    new_v = new_k + n_kv_heads * qkv_head_stride
    q = tl.load(q_heads + dims[None, :], mask=is_query, other=0.0).to(tl.float32)
    q_partner = tl.load(q_heads + partners[None, :], mask=is_query, other=0.0).to(tl.float32)
    key = tl.load(new_k + dims, mask=is_dim, other=0.0).to(tl.float32)
    key_partner = tl.load(new_k + partners, mask=is_dim, other=0.0).to(tl.float32)
    value = tl.load(new_v + dims, mask=is_dim, other=0.0).to(v_cache.dtype.element_ty)
    if has_q_norm:
        rate = tl.rsqrt(tl.sum(q * q, axis=1) / head_dim + eps)[:, None]
        q = q * rate * q_weight[None, :]
        q_partner = q_partner * rate * q_partner_weight[None, :]
    if has_k_norm:
        rate = tl.rsqrt(tl.sum(key * key, axis=0) / head_dim + eps)
        key = key * rate * k_weight
        key_partner = key_partner * rate * k_partner_weight
    # What q and k become is rounded as the projection's output is, and then to the pool's type.
    q = (q * cos[None, :] + q_partner * sin[None, :]).to(qkv.dtype.element_ty)
    key = (key * cos + key_partner * sin).to(qkv.dtype.element_ty).to(k_cache.dtype.element_ty)
    kept = is_dim & takes_new & (slot >= 0)
    block = (slot // block_size).to(tl.int64)
    place = slot % block_size
    tl.store(k_head + block * k_block_stride + place * k_token_stride + dims, key, mask=kept)
    tl.store(v_head + block * v_block_stride + place * v_token_stride + dims, value, mask=kept)

    # The running softmax begins with the new token, or with nothing.
    score = tl.sum(q.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale
    best = tl.where(takes_new, score, float("-inf"))
    total = tl.where(takes_new, tl.full((query_rows,), 1.0, tl.float32), 0.0)
    acc = tl.zeros((query_rows, padded_dim), tl.float32)
    acc += tl.where(takes_new, value.to(tl.float32), 0.0)[None, :]
    for first_key in range(begin, end, kv_tokens):
        # The next tile is on its way while this one is computed.
        next_keys = first_key + kv_tokens + keys
        is_key = next_keys < end
        blocks = tl.load(table + next_keys // block_size, mask=is_key, other=0).to(tl.int64)
        places = next_keys % block_size
        inside = is_key[:, None] & is_dim[None, :]
        k_places = (blocks * k_block_stride + places * k_token_stride)[:, None] + dims[None, :]
        v_places = (blocks * v_block_stride + places * v_token_stride)[:, None] + dims[None, :]
        next_k = tl.load(k_head + k_places, mask=inside, other=0.0)
        next_v = tl.load(v_head + v_places, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        scores = tl.where((first_key + keys < end)[None, :], scores, float("-inf"))
        # A number: some key of the tile is seen.
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_best[:, None])
        decay = tl.exp2(best - new_best)
        total = total * decay + tl.sum(weights, axis=1)
        acc = tl.dot(
            weights.to(q.dtype), v.to(q.dtype), acc=acc * decay[:, None], input_precision="ieee"
        )
        best, k, v = new_best, next_k, next_v
    # Without a context there is no sum.
    result = acc / tl.where(total > 0, total, 1.0)[:, None]

    pair = row * n_kv_heads + kv_head
    if n_active == 1:
        ends = out + (pair * group + group_rows)[:, None] * head_dim + dims[None, :]
        tl.store(ends, result.to(out.dtype.element_ty), mask=is_query)
    elif is_split:
        heads = (pair * n_splits + split) * group + group_rows
        tl.store(parts + heads[:, None] * head_dim + dims[None, :], result, mask=is_query)
        tl.store(log_sums + heads, best + tl.log2(total), mask=group_rows < group)
        # All threads' stores come before the count, which releases them.
        tl.debug_barrier()
        n_before = tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu")
        if n_before == n_active - 1:
            _combine(
                parts,
                log_sums,
                out,
                pair,
                n_splits,
                n_active,
                group=group,
                head_dim=head_dim,
                padded_dim=padded_dim,
                max_splits=max_splits,
            )
            # For the next launch, which reads it after its wait.
            tl.store(counters + pair, 0)


@triton.jit
def _combine(
    parts,
    log_sums,
    out,
    pair,
    n_splits,
    n_active,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    max_splits: tl.constexpr,
):
    """Weigh the parts of the heads of one row and K/V head by their sums. They were written by
    other multiprocessors: caches of this one are passed by."""
    splits = tl.arange(0, max_splits)
    dims = tl.arange(0, padded_dim)
    is_active = splits < n_active
    is_dim = dims < head_dim
    for first in tl.static_range(0, group, 2):
        # Two heads at once: one after the other each would wait for memory, and the registers do
        # not hold more.
        sums, tiles = (), ()
        for head in tl.static_range(first, first + 2):
            if head < group:
                places = (pair * n_splits + splits) * group + head
                log_sum = tl.load(
                    log_sums + places, mask=is_active, other=float("-inf"), cache_modifier=".cg"
                )
                tile = tl.load(
                    parts + places[:, None] * head_dim + dims[None, :],
                    mask=is_active[:, None] & is_dim[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                sums += (log_sum,)  # type: ignore[assignment]
                tiles += (tile,)  # type: ignore[assignment]
        for head in tl.static_range(first, first + 2):
            if head < group:
                log_sum = sums[head - first]
                weights = tl.exp2(log_sum - tl.max(log_sum, axis=0))
                tile = tiles[head - first] * weights[:, None]
                result = tl.sum(tile, axis=0) / tl.sum(weights, axis=0)
                ends = out + (pair * group + head) * head_dim + dims
                tl.store(ends, result.to(out.dtype.element_ty), mask=is_dim)
