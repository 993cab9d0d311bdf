"""Attention over paged K and V on a GPU: the shapes, tilings and splits that
``attention_kernels`` runs with. Nothing here asks the device for a value."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import e, log2

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from engine_service.kernels.device import PagedRows
from engine_service.kernels.triton.attention_kernels import attend_kernel, combine_kernel
from engine_service.kernels.triton.gpu import gpu_of

# Of K, and as much of V: 64 tokens of 128 numbers of 2 bytes.
_KV_TILE_BYTES = 16 * 1024
# A tile's blocks are loaded before its K and V, so that two tiles of these under way need stages
# for five, and with a large tile of queries 130 KiB of shared memory; with three it is one.
_STAGES, _STAGES_OF_SMALL_DEVICES = 5, 3
_LARGE_SHARED_BYTES = 160 * 1024
# Products on tensor cores have no fewer rows.
_MIN_ROWS = 16
# A context is split until this many programs wait for each multiprocessor: three or four run on
# one at a time, and parts of equal size hide that rows differ.
_PROGRAMS_PER_PROCESSOR = 4
_MAX_SPLITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTiling:
    """How one program works.

    query_rows: rows of its product, (token, query head) pairs of one K/V head; a power of two, at
    least 16 and at least the query heads of a K/V head. kv_tokens: keys it takes at once; a power
    of two, at least 16. n_warps, n_stages: Triton's.
    """

    query_rows: int
    kv_tokens: int
    n_warps: int
    n_stages: int


def decode_attention(
    q: Tensor,
    *,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: PagedRows,
    scale: float,
    tiling: AttentionTiling | None = None,
    n_splits: int | None = None,
) -> Tensor:
    """Return (n_rows, n_heads * head_dim), as ``DeviceKernels.decode_attention`` says: flash
    attention over parts of each context at once (Dao et al. 2023, "Flash-Decoding").

    n_splits: parts of each row's context; by default by ``split_count``.
    """
    return _attend(
        q,
        k_cache=k_cache,
        v_cache=v_cache,
        rows=rows,
        query_starts=None,
        max_query_len=1,
        scale=scale,
        tiling=tiling or default_tiling(q, n_kv_heads=k_cache.shape[2]),
        n_splits=n_splits,
    )


def prefill_attention(
    q: Tensor,
    *,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: PagedRows,
    scale: float,
    tiling: AttentionTiling | None = None,
    n_splits: int | None = None,
) -> Tensor:
    """Return (n_tokens, n_heads * head_dim), as ``DeviceKernels.prefill_attention`` says. What
    stands there for tokens behind ``query_starts``' last is any number."""
    if rows.query_starts is None:
        raise ValueError("prefill_attention needs query_starts")
    return _attend(
        q,
        k_cache=k_cache,
        v_cache=v_cache,
        rows=rows,
        query_starts=rows.query_starts,
        max_query_len=rows.max_query_len,
        scale=scale,
        tiling=tiling
        or default_tiling(q, n_kv_heads=k_cache.shape[2], max_query_len=rows.max_query_len),
        n_splits=n_splits,
    )


def default_tiling(q: Tensor, *, n_kv_heads: int, max_query_len: int = 1) -> AttentionTiling:
    """Return the tiling for ``q`` (n_tokens, n_heads, head_dim), by its shape, type and device."""
    n_heads, head_dim = q.shape[1:]
    group = n_heads // n_kv_heads
    padded_bytes = triton.next_power_of_2(head_dim) * q.element_size()
    tile_bytes, most_rows = _KV_TILE_BYTES, 128 if padded_bytes <= 256 else 64
    if q.dtype == torch.float32:
        # Exact products run without tensor cores, on what fits into registers, and are unrolled:
        # larger tiles take minutes to compile.
        tile_bytes, most_rows = _KV_TILE_BYTES // 2, _MIN_ROWS
    wanted_rows = triton.next_power_of_2(max_query_len * group)
    least_rows = max(_MIN_ROWS, triton.next_power_of_2(group))
    query_rows = max(least_rows, min(wanted_rows, most_rows))
    is_large = gpu_of(q.device).shared_bytes >= _LARGE_SHARED_BYTES
    return AttentionTiling(
        query_rows=query_rows,
        kv_tokens=min(max(tile_bytes // padded_bytes, 16), 128),
        n_warps=8 if query_rows >= 128 else 4,
        n_stages=_STAGES if is_large else _STAGES_OF_SMALL_DEVICES,
    )


def split_count(*, n_programs: int, n_kv_tiles: int, n_processors: int) -> int:
    """Return into how many parts contexts of up to ``n_kv_tiles`` tiles are split so that there is
    work for all processors, where without a split there are ``n_programs``."""
    wanted = -(-_PROGRAMS_PER_PROCESSOR * n_processors // n_programs)
    return max(1, min(wanted, n_kv_tiles, _MAX_SPLITS))


def tiling_candidates(start: AttentionTiling) -> Iterator[AttentionTiling]:
    """Yield ``start`` and what is worth a trial beside it on a new device."""
    yield start
    for kv_tokens, n_warps, n_stages in product(
        (start.kv_tokens // 2, start.kv_tokens, start.kv_tokens * 2), (4, 8), (3, 5)
    ):
        tiling = AttentionTiling(
            query_rows=start.query_rows, kv_tokens=kv_tokens, n_warps=n_warps, n_stages=n_stages
        )
        if tiling != start and kv_tokens >= _MIN_ROWS:
            yield tiling


def tune(
    attend: Callable[[AttentionTiling], object], *, candidates: Iterable[AttentionTiling]
) -> dict[AttentionTiling, float]:
    """Return the milliseconds of each candidate that this device can run, fastest first; for
    benchmarks, not for serving. attend: one call of attention with the tiling given."""
    times: dict[AttentionTiling, float] = {}
    for tiling in candidates:
        try:
            times[tiling] = do_bench(partial(attend, tiling), return_mode="median")
        except OutOfResources:
            continue
    return dict(sorted(times.items(), key=lambda item: item[1]))


def _attend(
    q: Tensor,
    *,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: PagedRows,
    query_starts: Tensor | None,
    max_query_len: int,
    scale: float,
    tiling: AttentionTiling,
    n_splits: int | None,
) -> Tensor:
    n_tokens, n_heads, head_dim = q.shape
    n_rows, max_blocks = rows.block_tables.shape
    _, block_size, n_kv_heads, _ = k_cache.shape
    group = n_heads // n_kv_heads
    padded_dim = max(_MIN_ROWS, triton.next_power_of_2(head_dim))
    out = q.new_empty(n_tokens, n_heads * head_dim)
    n_query_tiles = -(-max_query_len // (tiling.query_rows // group))
    n_programs = n_query_tiles * n_kv_heads
    if n_rows == 0 or n_tokens == 0:
        return out
    if n_splits is None:
        n_splits = split_count(
            n_programs=n_programs * n_rows,
            n_kv_tiles=-(-max_blocks * block_size // tiling.kv_tokens),
            n_processors=gpu_of(q.device).n_processors,
        )
    is_split = n_splits > 1
    parts, log_sums = out, out
    if is_split:
        parts = q.new_empty(n_tokens, n_heads, n_splits, head_dim, dtype=torch.float32)
        log_sums = q.new_empty(n_tokens, n_heads, n_splits, dtype=torch.float32)
    attend_kernel[(n_programs, n_rows, n_splits)](
        q,
        k_cache,
        v_cache,
        parts,
        log_sums,
        rows.block_tables,
        rows.context_lens,
        query_starts,
        scale * log2(e),
        *q.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        rows.block_tables.stride(0),
        N_KV_HEADS=n_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        BLOCK_SIZE=block_size,
        QUERY_ROWS=tiling.query_rows,
        KV_TOKENS=tiling.kv_tokens,
        SPLIT=is_split,
        num_warps=tiling.n_warps,
        num_stages=tiling.n_stages,
    )
    if is_split:
        combine_kernel[(n_tokens * n_heads,)](
            parts,
            log_sums,
            out,
            n_splits,
            HEAD_DIM=head_dim,
            PADDED_DIM=padded_dim,
            MAX_SPLITS=triton.next_power_of_2(n_splits),
        )
    return out
