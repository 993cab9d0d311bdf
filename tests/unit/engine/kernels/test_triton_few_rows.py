"""The one launch of attention for few rows, against rotation, store and attention in plain torch,
on pools where everything that is no row's is NaN: in the interpreter, or on a GPU."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows, TorchKernels
from engine_service.kernels.triton import dependent_launch
from engine_service.kernels.triton.few_rows_attention import (
    FewRowsTiling,
    default_tiling,
    rotate_store_attend,
)
from engine_service.kernels.triton.kernels import TritonKernels

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# Triton's interpreter computes bfloat16 products wrongly.
HALF = torch.bfloat16 if ON_GPU else torch.float16
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
OUT_OF_RANGE = 2**31 - 1
MAX_LEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    n_kv_heads: int = 2
    group: int = 2
    head_dim: int = 32
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    block_size: int = 16
    has_norms: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the kernel is called with but its caches, which are copied for each call."""

    arguments: dict[str, Any]
    k_cache: Tensor
    v_cache: Tensor
    counters: Tensor

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        k_cache, v_cache = like(self.k_cache), like(self.v_cache)
        arguments = self.arguments | {"qkv": self.arguments["qkv"].clone()}
        out = TorchKernels().rotate_store_attend(
            **arguments, k_cache=k_cache, v_cache=v_cache, counters=self.counters
        )
        return out, k_cache, v_cache

    def check(self, tiling: FewRowsTiling | None = None) -> None:
        expected, k_expected, v_expected = self.expected()
        assert expected.isfinite().all()
        k_cache, v_cache = like(self.k_cache), like(self.v_cache)
        with poisoned_memory():
            actual = rotate_store_attend(
                **self.arguments,
                k_cache=k_cache,
                v_cache=v_cache,
                counters=self.counters,
                tiling=tiling,
            )
        assert_near(actual, expected)
        assert_near(k_cache, k_expected, equal_nan=True)
        assert torch.equal(bits(v_cache), bits(v_expected))
        assert not self.counters.any()


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def like(view: Tensor) -> Tensor:
    """A copy of the same strides."""
    base = view._base
    assert base is not None
    return base.clone().as_strided(view.size(), view.stride(), view.storage_offset())


def assert_near(actual: Tensor, expected: Tensor, *, equal_nan: bool = False) -> None:
    # What rounds to the other neighbour in fp8 is an eighth away.
    tolerance = TOLERANCES.get(actual.dtype, 0.13)
    torch.testing.assert_close(
        actual.float(), expected.float(), rtol=tolerance, atol=tolerance, equal_nan=equal_nan
    )


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Make ``torch.empty`` fill what it returns with NaN."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        assert torch.empty(1, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def make_case(context_lens: Sequence[int], shape: Shape = Shape(), *, seed: int = 0) -> Case:
    """Contexts, whose last token is new: its place in the pool is NaN until it is stored."""
    torch.manual_seed(seed)
    size, n_rows = shape.block_size, len(context_lens)
    lengths = [-(-context_len // size) for context_len in context_lens]
    n_blocks = sum(lengths) + 3
    free = random.Random(seed).sample(range(n_blocks), n_blocks)
    tables = torch.full((n_rows, max(lengths) + 2), OUT_OF_RANGE, dtype=torch.int32)
    pool = torch.full((2, n_blocks, shape.n_kv_heads, size, shape.head_dim), torch.nan)
    slots = []
    for i, context_len in enumerate(context_lens):
        blocks = [free.pop() for _ in range(lengths[i])]
        tables[i, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        for place in range(context_len - 1):
            new = torch.randn(2, shape.n_kv_heads, shape.head_dim)
            pool[:, blocks[place // size], :, place % size] = new
        last = context_len - 1
        slots.append(blocks[last // size] * size + last % size if context_len else -1)
    pool = pool.to(shape.kv_dtype or shape.dtype).to(DEVICE)
    k_cache, v_cache = pool.transpose(2, 3).unbind(0)
    n_heads = shape.n_kv_heads * (shape.group + 2)
    qkv = torch.full((n_rows, n_heads + 2, shape.head_dim), torch.nan, dtype=shape.dtype)
    qkv[:, 1:-1] = torch.randn(n_rows, n_heads, shape.head_dim).to(shape.dtype)
    angles = torch.rand(MAX_LEN, shape.head_dim // 2) * 6.28
    norms = [1 + torch.rand(shape.head_dim).to(shape.dtype).to(DEVICE) for _ in range(2)]
    ints: Any = {"dtype": torch.int32, "device": DEVICE}
    return Case(
        arguments={
            "qkv": qkv.to(DEVICE)[:, 1:-1],
            "rotary": torch.cat((angles.cos(), angles.sin()), dim=1).to(DEVICE),
            "positions": torch.tensor([max(n - 1, 0) for n in context_lens], **ints),
            "slots": torch.tensor(slots, **ints),
            "q_norm": norms[0] if shape.has_norms else None,
            "k_norm": norms[1] if shape.has_norms else None,
            "eps": 1e-6,
            "rows": PagedRows(
                block_tables=tables.to(DEVICE), context_lens=torch.tensor(context_lens, **ints)
            ),
            "scale": shape.head_dim**-0.5,
        },
        k_cache=k_cache,
        v_cache=v_cache,
        counters=torch.zeros(n_rows * shape.n_kv_heads + 3, **ints),
    )


@pytest.mark.parametrize(
    ("head_dim", "dtype", "has_norms"),
    [
        (8, torch.float32, True),
        (32, HALF, False),
        (64, torch.float32, False),
        (80, HALF, True),
        (128, HALF, True),
        (256, HALF, False),
    ],
)
def test_each_head_size_and_type(head_dim: int, dtype: torch.dtype, has_norms: bool) -> None:
    shape = Shape(head_dim=head_dim, dtype=dtype, has_norms=has_norms)
    make_case([70, 0, 16], shape).check()


@pytest.mark.parametrize(("group", "n_kv_heads"), [(1, 3), (3, 2), (7, 1), (16, 1)])
def test_each_group(group: int, n_kv_heads: int) -> None:
    make_case([47, 2, 97], Shape(group=group, n_kv_heads=n_kv_heads), seed=group).check()


@pytest.mark.parametrize("n_splits", [1, 2, 5, 12])
def test_each_number_of_splits(n_splits: int) -> None:
    # The new token alone in the next tile, in the same one, alone at all.
    case = make_case([17, 33, 1, 0, 161], Shape(n_kv_heads=1, head_dim=16))
    case.check(FewRowsTiling(kv_tokens=16, n_splits=n_splits))


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_each_block_size(block_size: int) -> None:
    shape = Shape(block_size=block_size, n_kv_heads=1)
    make_case([64, 65, 200], shape).check(FewRowsTiling(kv_tokens=32, n_splits=3, n_warps=2))


@pytest.mark.parametrize("seed", range(3))
def test_random_rows(seed: int) -> None:
    choice = random.Random(seed)
    contexts = [choice.randrange(150) for _ in range(choice.randrange(1, 5))]
    make_case(contexts, Shape(group=choice.choice([1, 2, 5])), seed=seed).check()


def test_a_pool_of_eight_bits() -> None:
    if ON_GPU:
        shape = Shape(dtype=HALF, head_dim=128, kv_dtype=torch.float8_e4m3fn)
        make_case([40, 100, 7], shape).check()
    else:  # the interpreter knows no such numbers; that a pool's type may differ shows in others
        make_case([40, 100, 7], Shape(dtype=torch.float32, kv_dtype=torch.float16)).check()


def test_a_row_without_a_slot_stores_nothing() -> None:
    case = make_case([40, 21])
    stored = case.expected()[0]
    slots = case.arguments["slots"].clone()
    slots[1] = -1
    case = replace(case, arguments=case.arguments | {"slots": slots})
    k_cache, v_cache = like(case.k_cache), like(case.v_cache)
    counters = case.counters
    out = rotate_store_attend(**case.arguments, k_cache=k_cache, v_cache=v_cache, counters=counters)
    assert_near(out, stored)
    for cache, before in ((k_cache, case.k_cache), (v_cache, case.v_cache)):
        assert int((cache.isnan() != before.isnan()).any(-1).sum()) == 2  # heads of one token


def test_it_reads_nothing_of_the_new_tokens_place() -> None:
    """What stands there may be any number: its program may write it before or after."""
    case = make_case([40])
    expected = case.expected()[0]
    slot = int(case.arguments["slots"][0])
    for cache in (case.k_cache, case.v_cache):
        cache[slot // 16, slot % 16] = 1e4
    tiling = FewRowsTiling(kv_tokens=16, n_splits=1)
    k_cache, v_cache = like(case.k_cache), like(case.v_cache)
    out = rotate_store_attend(
        **case.arguments, k_cache=k_cache, v_cache=v_cache, counters=case.counters, tiling=tiling
    )
    assert_near(out, expected)


def test_heads_that_do_not_fit_are_refused() -> None:
    kernels = TritonKernels()
    assert kernels.max_few_rows(group=16, head_dim=256) > 0
    for shape in (Shape(group=17, n_kv_heads=1), Shape(head_dim=258, group=1)):
        assert kernels.max_few_rows(group=shape.group, head_dim=shape.head_dim) == 0
        with pytest.raises(ValueError, match="not supported"):
            make_case([3], shape).check()


def test_contexts_are_split_so_that_the_processors_have_work() -> None:
    qkv = torch.empty(1, 32, 128, dtype=torch.bfloat16, device=DEVICE)
    tiling = default_tiling(qkv, n_kv_heads=8, max_context=4096)
    assert tiling.kv_tokens == 64
    assert tiling.n_splits == (32 if ON_GPU else 2)
    assert default_tiling(qkv, n_kv_heads=8, max_context=16).n_splits == 1


@pytest.mark.skipif(not ON_GPU, reason="the interpreter runs programs one after the other")
@pytest.mark.parametrize("n_rows", [1, 4])
def test_layers_in_a_graph_compute_the_same_with_dependent_launches(
    n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case([400, 77, 1, 512][:n_rows], Shape(head_dim=128, n_kv_heads=8, dtype=HALF))
    kernels, hidden, n_layers = TritonKernels(), 1024, 24
    first = torch.randn(n_rows, hidden, device=DEVICE).to(HALF)
    norm: dict[str, Any] = {"norm_weight": torch.ones_like(first[0]), "eps": 1e-6}
    qkv, out, gate_up, down = (
        [(torch.randn(*size, device=DEVICE) * size[1] ** -0.5).to(HALF) for _ in range(n_layers)]
        for size in ((4096, hidden), (hidden, 2048), (6144, hidden), (hidden, 3072))
    )
    caches = [(like(case.k_cache), like(case.v_cache)) for _ in range(n_layers)]
    x = first.clone()

    def compute() -> None:
        x.copy_(first)
        for i, (k_cache, v_cache) in enumerate(caches):
            heads = kernels.norm_linear(x, **norm, weight=qkv[i]).view(n_rows, -1, 128)
            arguments = case.arguments | {"qkv": heads, "counters": case.counters}
            y = kernels.rotate_store_attend(**arguments, k_cache=k_cache, v_cache=v_cache)
            kernels.linear_add(y, weight=out[i], residual=x)
            inner = kernels.norm_gate_up_swiglu(x, **norm, weight=gate_up[i])
            kernels.linear_add(inner, weight=down[i], residual=x)

    outcomes = []
    for is_on in (False, True):
        monkeypatch.setattr(dependent_launch, "IS_ON", is_on)
        compute()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compute()
        for _ in range(20):
            for k_cache, v_cache in caches:  # each has to be stored again
                k_cache.copy_(case.k_cache)
                v_cache.copy_(case.v_cache)
            graph.replay()
            outcomes.append([x.clone(), *(cache.clone() for pair in caches for cache in pair)])
    assert outcomes[0][0].isfinite().all()
    assert not case.counters.any()
    # The order of every sum is fixed: equal to the last bit.
    for outcome in outcomes:
        for actual, expected in zip(outcome, outcomes[0], strict=True):
            assert torch.equal(bits(actual), bits(expected))
