"""Triton's attention against the plain one, on pools where everything that is no row's is NaN."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows, TorchKernels
from engine_service.kernels.triton import attention
from engine_service.kernels.triton.attention import AttentionTiling

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
# Triton's interpreter computes bfloat16 products wrongly.
HALF = torch.bfloat16 if HAS_GPU else torch.float16
HEAD_DIMS_AND_DTYPES = [
    (64, torch.float32),
    (80, torch.float16),
    (96, HALF),
    (128, torch.float32),
    (128, HALF),
    (256, torch.float16),
]
TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
OUT_OF_RANGE = 2**31 - 1
# New tokens and context.
Row = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    n_kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float16
    block_size: int = 16
    layout: str = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    rows: PagedRows
    scale: float

    def run(self, attend: Callable[..., Tensor], **options: object) -> Tensor:
        return attend(
            self.q,
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            rows=self.rows,
            scale=self.scale,
            **options,
        )

    def check(self, attend: Callable[..., Tensor], **options: object) -> None:
        expected = self.run(getattr(TorchKernels(), attend.__name__))
        assert expected.isfinite().all()
        with poisoned_memory():
            actual = self.run(attend, **options)
        tolerance = TOLERANCES[self.q.dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Make ``torch.empty`` fill what it returns with NaN."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        assert torch.empty(1, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def empty_pool(n_blocks: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return views (n_blocks, block_size, n_kv_heads, head_dim) of K and V, all NaN."""
    sizes = (shape.block_size, shape.n_kv_heads, shape.head_dim)
    if shape.layout == "tokens":
        pool = torch.full((n_blocks, sizes[0], 2, *sizes[1:]), torch.nan, dtype=shape.dtype)
        k_cache, v_cache = pool.unbind(2)
        return k_cache, v_cache
    pools = torch.full((2, n_blocks, sizes[1], sizes[0], sizes[2]), torch.nan, dtype=shape.dtype)
    k_cache, v_cache = pools.transpose(2, 3)
    return k_cache, v_cache


def make_case(rows: Sequence[Row], *, shape: Shape, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    context_lens = [context_len for _, context_len in rows]
    lengths = [-(-context_len // shape.block_size) for context_len in context_lens]
    n_blocks = sum(lengths) + 5
    free = random.Random(seed).sample(range(n_blocks), n_blocks)
    tables = torch.full((len(rows), max(lengths) + 2), OUT_OF_RANGE, dtype=torch.int32)
    k_cache, v_cache = empty_pool(n_blocks, shape)
    for i, context_len in enumerate(context_lens):
        table = torch.tensor([free.pop() for _ in range(lengths[i])], dtype=torch.int32)
        tables[i, : len(table)] = table
        places = torch.arange(context_len)
        where = (table[places // shape.block_size].long(), places % shape.block_size)
        for cache in (k_cache, v_cache):
            new = torch.randn(context_len, shape.n_kv_heads, shape.head_dim)
            cache[where] = new.to(shape.dtype)
    starts = torch.tensor([0, *(n_new for n_new, _ in rows)], dtype=torch.int32).cumsum(0)
    n_heads = shape.n_kv_heads * shape.group
    qkv = torch.full((int(starts[-1]), n_heads + 2, shape.head_dim), torch.nan, dtype=shape.dtype)
    qkv[:, 1:-1] = torch.randn(qkv[:, 1:-1].shape).to(shape.dtype)
    return Case(
        q=qkv.to(DEVICE)[:, 1:-1],
        k_cache=on_device(k_cache),
        v_cache=on_device(v_cache),
        rows=PagedRows(
            block_tables=tables.to(DEVICE),
            context_lens=torch.tensor(context_lens, dtype=torch.int32, device=DEVICE),
            query_starts=starts.int().to(DEVICE),
            max_query_len=max(n_new for n_new, _ in rows),
        ),
        scale=shape.head_dim**-0.5,
    )


def on_device(view: Tensor) -> Tensor:
    """Move what lies below a view, so that its strides stay."""
    base = view._base
    assert base is not None
    return base.to(DEVICE).as_strided(view.size(), view.stride(), view.storage_offset())


def decoding(case: Case) -> Case:
    return replace(case, rows=replace(case.rows, query_starts=None, max_query_len=1))


def single(context_lens: Sequence[int]) -> list[Row]:
    return [(1, context_len) for context_len in context_lens]


@pytest.mark.parametrize(("head_dim", "dtype"), HEAD_DIMS_AND_DTYPES)
def test_decode_of_each_head_size_and_type(head_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(head_dim=head_dim, dtype=dtype)
    case = make_case(single([130, 0, 1, 16, 33]), shape=shape)
    decoding(case).check(attention.decode_attention)


@pytest.mark.parametrize(
    ("group", "n_kv_heads", "layout"),
    [(1, 3, "tokens"), (3, 2, "heads"), (7, 1, "tokens"), (8, 1, "heads"), (20, 1, "tokens")],
)
def test_decode_of_each_group_and_layout(group: int, n_kv_heads: int, layout: str) -> None:
    shape = Shape(group=group, n_kv_heads=n_kv_heads, layout=layout)
    case = make_case(single([47, 0, 200, 1]), shape=shape, seed=group)
    decoding(case).check(attention.decode_attention)


@pytest.mark.parametrize(("n_splits", "block_size"), [(1, 16), (2, 64), (5, 256), (32, 16)])
def test_decode_of_each_number_of_splits(n_splits: int, block_size: int) -> None:
    case = make_case(
        single([0, 700, 128, 129, 5]), shape=Shape(block_size=block_size, n_kv_heads=1)
    )
    decoding(case).check(attention.decode_attention, n_splits=n_splits)


@pytest.mark.parametrize("seed", range(2))
def test_decode_of_random_rows(seed: int) -> None:
    choice = random.Random(seed)
    contexts = [choice.randrange(300) for _ in range(choice.randrange(1, 9))]
    shape = Shape(layout=choice.choice(["tokens", "heads"]))
    decoding(make_case(single(contexts), shape=shape, seed=seed)).check(attention.decode_attention)


def test_decode_gives_zeros_for_no_context() -> None:
    case = decoding(make_case(single([0, 0]), shape=Shape()))
    for n_splits in (1, 3):
        with poisoned_memory():
            out = case.run(attention.decode_attention, n_splits=n_splits)
        assert torch.equal(out, torch.zeros_like(out))


def test_decode_reaches_blocks_behind_two_to_the_31_numbers() -> None:
    case = decoding(make_case(single([40]), shape=Shape(n_kv_heads=1)))
    # Untouched memory of the processor costs nothing.
    far = torch.empty(2**31 + 2**20, dtype=case.q.dtype, device=DEVICE)
    block_stride = 2**30
    caches = []
    for offset, cache in ((0, case.k_cache), (16 * 64, case.v_cache)):
        strides = (block_stride, 64, 64, 1)
        view = far.as_strided((3, 16, 1, 64), strides, offset)
        for i in range(3):
            view[i] = cache[case.rows.block_tables[0, i]]
        caches.append(view)
    tables = torch.arange(3, dtype=torch.int32, device=DEVICE)[None]
    far_case = replace(
        case,
        k_cache=caches[0],
        v_cache=caches[1],
        rows=replace(case.rows, block_tables=tables),
    )
    expected = case.run(attention.decode_attention)
    assert expected.isfinite().all()
    assert torch.equal(far_case.run(attention.decode_attention), expected)


@pytest.mark.parametrize(("head_dim", "dtype"), HEAD_DIMS_AND_DTYPES)
def test_prefill_of_each_head_size_and_type(head_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(head_dim=head_dim, dtype=dtype)
    rows = [(40, 40), (1, 1), (17, 80), (3, 150)]
    make_case(rows, shape=shape).check(attention.prefill_attention)


@pytest.mark.parametrize(
    ("group", "n_kv_heads", "layout"),
    [(1, 2, "heads"), (3, 2, "tokens"), (7, 1, "heads"), (8, 1, "tokens")],
)
def test_prefill_of_each_group_and_layout(group: int, n_kv_heads: int, layout: str) -> None:
    shape = Shape(group=group, n_kv_heads=n_kv_heads, layout=layout)
    rows = [(40, 40), (0, 20), (33, 70), (1, 31), (16, 16)]
    make_case(rows, shape=shape, seed=group).check(attention.prefill_attention)


@pytest.mark.parametrize(("longest", "n_splits"), [(2, 1), (2, 9), (5, 3), (16, 3), (40, 2)])
def test_prefill_of_a_few_tokens_on_long_contexts(longest: int, n_splits: int) -> None:
    rows = [(longest, 300), (1, 64), (2, 2), (longest, longest), (2, 129)]
    make_case(rows, shape=Shape(n_kv_heads=1)).check(attention.prefill_attention, n_splits=n_splits)


@pytest.mark.parametrize("seed", range(2))
def test_prefill_of_random_rows(seed: int) -> None:
    choice = random.Random(seed)
    rows = []
    for _ in range(choice.randrange(1, 6)):
        n_new = choice.randrange(1, 60)
        rows.append((n_new, n_new + choice.choice([0, choice.randrange(200)])))
    shape = Shape(block_size=choice.choice([16, 32]), group=choice.choice([2, 5]))
    make_case(rows, shape=shape, seed=seed).check(attention.prefill_attention)


def test_prefill_gives_zeros_for_a_padded_row_of_no_context() -> None:
    case = make_case([(3, 20), (3, 0), (3, 0)], shape=Shape())
    for n_splits in (1, 2):
        with poisoned_memory():
            out = case.run(attention.prefill_attention, n_splits=n_splits)
        assert out[:3].isfinite().all() and out[:3].any()
        assert torch.equal(out[3:], torch.zeros_like(out[3:]))


def test_prefill_needs_to_know_where_rows_begin() -> None:
    case = decoding(make_case([(1, 1)], shape=Shape()))
    with pytest.raises(ValueError, match="query_starts"):
        case.run(attention.prefill_attention)


def test_every_tiling_gives_the_same() -> None:
    tiling = AttentionTiling(query_rows=32, kv_tokens=32, n_warps=4, n_stages=2)
    case = make_case([(33, 100), (5, 5)], shape=Shape(group=3))
    case.check(attention.prefill_attention, tiling=tiling)
    assert tiling in attention.tiling_candidates(tiling)


def test_splits_fill_the_processors_but_not_beyond_the_context() -> None:
    assert attention.split_count(n_programs=2048, n_kv_tiles=64, n_processors=132) == 1
    assert attention.split_count(n_programs=264, n_kv_tiles=64, n_processors=132) == 2
    assert attention.split_count(n_programs=8, n_kv_tiles=64, n_processors=132) == 32
    assert attention.split_count(n_programs=8, n_kv_tiles=5, n_processors=132) == 5
    assert attention.split_count(n_programs=8, n_kv_tiles=0, n_processors=132) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_captured_decode_follows_its_rows() -> None:
    first = decoding(make_case(single([300, 0, 40]), shape=Shape(dtype=HALF)))
    first.run(attention.decode_attention)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = first.run(attention.decode_attention)
    first.rows.context_lens.copy_(torch.tensor([17, 300, 0], dtype=torch.int32))
    first.rows.block_tables.copy_(first.rows.block_tables[[2, 0, 1]])
    graph.replay()
    expected = first.run(TorchKernels().decode_attention)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
