"""Weights of eight bits and the products with them, in Triton, against plain torch: in the
interpreter, or on the GPU where there is one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine_service.kernels import quantization
from engine_service.kernels.quantization import (
    BLOCK_IN,
    Kind,
    QuantizedWeight,
    dequantize,
    dequantize_weight,
    quantize,
    quantize_weight,
)
from engine_service.kernels.triton import quantized_linear as products
from engine_service.kernels.triton.quantized_linear import quantized_linear

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
# Of sums of about 1: a rounding of each weight, and one of the sum.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
KINDS: list[Kind] = ["int8", "fp8"]
gpu_only = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE)


def inputs(n_rows: int, n_in: int, *, dtype: torch.dtype) -> Tensor:
    """Rows with NaN between them, which lie on no even address."""
    around = torch.full((n_rows, n_in + 9), float("nan"), dtype=dtype, device=DEVICE)
    around[:, 5 : 5 + n_in] = random(n_rows, n_in, seed=n_rows)
    return around[:, 5 : 5 + n_in]


def made(n_out: int, n_in: int, *, kind: Kind) -> QuantizedWeight:
    return quantize_weight(random(n_out, n_in, seed=n_in, scale=n_in**-0.5), kind=kind)


def some_bias(n_out: int, *, dtype: torch.dtype) -> Tensor:
    around = torch.full((n_out + 2,), float("nan"), dtype=dtype, device=DEVICE)
    around[1:-1] = random(n_out, seed=3)
    return around[1:-1]


def oracle(x: Tensor, *, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    wide = None if bias is None else bias.float()
    return functional.linear(x.float(), dequantize_weight(weight), wide)


def assert_near(actual: Tensor, expected: Tensor, *, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out of its output is NaN instead of what lay there before."""
    make: Any = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, **kwargs: make(*args, **kwargs).fill_(float("nan"))
    )


# -- the weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_int8_is_what_the_processor_computes_with(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_NUMBERS_AT_ONCE", rows_at_once * 2 * BLOCK_IN)
    weight = random(7, 200).bfloat16()
    weight[2] = 0.0
    packed = quantize_weight(weight, kind="int8")
    assert packed.values.dtype == torch.int8
    assert (packed.values.shape, packed.scales.shape) == ((7, 2 * BLOCK_IN), (8, 7))
    assert not packed.values[:, 200:].any()
    assert torch.equal(dequantize_weight(packed), dequantize(*quantize(weight), n_in=200))


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_fp8_rounds_each_number_to_four_bits(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_NUMBERS_AT_ONCE", rows_at_once * BLOCK_IN)
    weight = random(7, 100) * torch.logspace(-3, 3, 7, device=DEVICE)[:, None]
    weight[2] = 0.0
    packed = quantize_weight(weight, kind="fp8")
    assert packed.values.dtype == torch.float8_e4m3fn
    assert (packed.values.shape, packed.scales.shape) == ((7, BLOCK_IN), (1, 7))
    assert not packed.values.float()[:, 100:].any()
    greatest = weight.abs().amax(dim=-1, keepdim=True)
    found = dequantize_weight(packed)
    torch.testing.assert_close(found.abs().amax(dim=-1, keepdim=True), greatest)
    # Three bits behind the point; below 2**-6 of 448 the numbers stand at equal distances.
    error = (found - weight).abs()
    assert (error <= weight.abs() * 2**-4 + greatest / 448 * 2**-10).all()
    assert error.max() > 0


# -- the products --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n_rows", "n_out", "n_in"),
    [
        (1, 1, 32),
        (1, 66, 576),  # more tiles than one, in parts
        (3, 5, 1),
        (16, 5, 300),  # four parts, one of them empty
        (17, 64, 128),
        (33, 7, 257),
        (70, 130, 20),
        (130, 3, 100),
        (256, 7, 64),
    ],
)
def test_a_product(n_rows: int, n_out: int, n_in: int, kind: Kind, dtype: torch.dtype) -> None:
    x, weight = inputs(n_rows, n_in, dtype=dtype), made(n_out, n_in, kind=kind)
    assert_near(
        quantized_linear(x, weight=weight, bias=None), oracle(x, weight=weight), dtype=dtype
    )
    bias = some_bias(n_out, dtype=dtype)
    found = quantized_linear(x, weight=weight, bias=bias)
    assert found.is_contiguous()
    assert_near(found, oracle(x, weight=weight, bias=bias), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_of_no_rows(kind: Kind) -> None:
    x = torch.zeros((0, 40), device=DEVICE)
    assert quantized_linear(x, weight=made(3, 40, kind=kind), bias=None).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_parts", [1, 2, 4, 8])
def test_however_many_parts(max_parts: int, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MAX_PARTS", max_parts)
    assert products._n_parts(4, n_padded=1024) == max_parts
    x, weight = inputs(5, 1000, dtype=torch.float32), made(65, 1000, kind=kind)
    first = quantized_linear(x, weight=weight, bias=None)
    assert_near(first, oracle(x, weight=weight), dtype=torch.float32)
    assert not weight.arrivals.any()
    for _ in range(50 if ON_GPU else 1):
        again = quantized_linear(x, weight=weight, bias=None)
        assert torch.equal(again, first), "the order of the parts changes no bit"


def test_a_product_of_many_tiles_is_not_split() -> None:
    assert products._n_parts(quantization.MAX_SPLIT_TILES, n_padded=4096) == 1
    assert products._n_parts(64, n_padded=4096) == 4
    assert products._n_parts(1, n_padded=BLOCK_IN) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scratch_rows", [64, 1000])
def test_many_rows_go_by_a_scratch(
    scratch_rows: int, kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_MAX_FUSED_ROWS", 8)
    monkeypatch.setattr(products, "_SCRATCH_NUMBERS", scratch_rows * 140)
    monkeypatch.setattr(products, "_multiply", None)
    x, weight = inputs(9, 140, dtype=dtype), made(131, 140, kind=kind)
    assert_near(
        quantized_linear(x, weight=weight, bias=None), oracle(x, weight=weight), dtype=dtype
    )
    bias = some_bias(131, dtype=dtype)
    assert_near(
        quantized_linear(x, weight=weight, bias=bias),
        oracle(x, weight=weight, bias=bias),
        dtype=dtype,
    )


@gpu_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [4, 300])
def test_real_sizes(n_rows: int, kind: Kind) -> None:
    for n_out, n_in in ((4096, 1024), (1024, 3072), (20000, 512)):
        x, weight = inputs(n_rows, n_in, dtype=torch.bfloat16), made(n_out, n_in, kind=kind)
        found = quantized_linear(x, weight=weight, bias=None)
        assert_near(found, oracle(x, weight=weight), dtype=torch.bfloat16)


@gpu_only
def test_a_graph_replays_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = random(4, 1024).bfloat16(), made(1024, 1024, kind="int8")
    quantized_linear(x, weight=weight, bias=None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = quantized_linear(x, weight=weight, bias=None)
    for seed in (5, 6):
        x.copy_(random(4, 1024, seed=seed))
        graph.replay()
        assert_near(found, oracle(x, weight=weight), dtype=torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("n_rows", [1, 300])
def test_a_weight_of_more_numbers_than_32_bits_count(n_rows: int) -> None:
    n_out, n_in = 2**17 + 1, 2**14
    values = torch.zeros((n_out, n_in), dtype=torch.int8, device=DEVICE)
    values[-1, -1] = 3
    scales = torch.ones((n_in // quantization.GROUP, n_out), device=DEVICE)
    arrivals = torch.zeros(quantization.MAX_SPLIT_TILES, dtype=torch.int32, device=DEVICE)
    weight = QuantizedWeight(values=values, scales=scales, n_in=n_in, arrivals=arrivals)
    x = torch.ones((n_rows, n_in), dtype=torch.bfloat16, device=DEVICE)
    found = quantized_linear(x, weight=weight, bias=None)
    assert (found[:, -1] == 3).all()
    assert not found[:, :-1].any()
