"""Products of a few tokens in Triton, with what is fused into them, against plain torch: in the
interpreter, or on the GPU where there is one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine_service.kernels.triton import dependent_launch
from engine_service.kernels.triton.linear import (
    MAX_TOKENS,
    LinearTiles,
    configurations,
    linear,
    linear_add,
    norm_gate_up_swiglu,
    norm_linear,
)

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
EPS = 1e-5
N_TOKENS = [1, 3, 4, 5, 16]
# (n_out, n_in): no power of two, less than a block, rows of an odd length.
SHAPES = [(8, 64), (19, 200), (2, 24), (3, 33)]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


def wide(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """A matrix whose rows lie NaNs apart, so that a read between them shows."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.full((*shape[:-1], shape[-1] + 16), float("nan"), dtype=dtype)
    around[..., 8:-8] = torch.randn(shape, generator=generator) * scale
    return around.to(DEVICE)[..., 8:-8]


def matrix(n_out: int, n_in: int, *, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return wide(n_out, n_in, dtype=dtype, seed=seed, scale=n_in**-0.5)


def normed(x: Tensor, *, norm_weight: Tensor) -> Tensor:
    return functional.rms_norm(x.float(), x.shape[1:], norm_weight.float(), EPS)


def product(x: Tensor, *, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64: which order a sum has must not matter to the oracle."""
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def gated(x: Tensor, *, weight: Tensor) -> Tensor:
    gate, up = product(x, weight=weight).chunk(2, dim=-1)
    return functional.silu(gate) * up


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out of its output is NaN instead of what lay there before."""
    empty: Any = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan"))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_linear(n_tokens: int, dtype: torch.dtype) -> None:
    for n_out, n_in in SHAPES:
        x = wide(n_tokens, n_in, dtype=dtype, seed=0)
        weight = matrix(n_out, n_in, dtype=dtype)
        assert_near(linear(x, weight=weight), product(x, weight=weight))
        bias = wide(n_out, dtype=dtype, seed=2)
        assert_near(linear(x, weight=weight, bias=bias), product(x, weight=weight, bias=bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_linear_add(n_tokens: int, dtype: torch.dtype) -> None:
    for n_out, n_in in SHAPES:
        x = wide(n_tokens, n_in, dtype=dtype, seed=0)
        weight = matrix(n_out, n_in, dtype=dtype)
        # The residual stands in a buffer for more tokens, among NaNs.
        whole = wide(n_tokens + 3, n_out, dtype=dtype, seed=2)
        before = whole.clone()
        linear_add(x, weight=weight, residual=whole[:n_tokens])
        expected = before[:n_tokens].double() + product(x, weight=weight)
        assert_near(whole[:n_tokens], expected)
        assert torch.equal(whole[n_tokens:], before[n_tokens:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_norm_linear(n_tokens: int, dtype: torch.dtype) -> None:
    for n_out, n_in in SHAPES:
        x = wide(n_tokens, n_in, dtype=dtype, seed=0, scale=3.0)
        norm_weight = wide(n_in, dtype=dtype, seed=3)
        weight = matrix(n_out, n_in, dtype=dtype)
        bias = wide(n_out, dtype=dtype, seed=2)
        before = x.clone()
        norm: Any = {"norm_weight": norm_weight, "eps": EPS}
        expected = product(normed(x, norm_weight=norm_weight), weight=weight)
        assert_near(norm_linear(x, **norm, weight=weight), expected)
        actual = norm_linear(x, **norm, weight=weight, bias=bias)
        assert_near(actual, expected + bias.double())
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_norm_gate_up_swiglu(n_tokens: int, dtype: torch.dtype) -> None:
    for n, n_in in SHAPES:
        x = wide(n_tokens, n_in, dtype=dtype, seed=0, scale=3.0)
        norm_weight = wide(n_in, dtype=dtype, seed=3)
        weight = matrix(2 * n, n_in, dtype=dtype)
        actual = norm_gate_up_swiglu(x, norm_weight=norm_weight, eps=EPS, weight=weight)
        assert_near(actual, gated(normed(x, norm_weight=norm_weight), weight=weight))


@pytest.mark.parametrize("n_tokens", [1, 8])
def test_a_norm_holds_float16_that_its_weight_would_overflow(n_tokens: int) -> None:
    x = wide(n_tokens, 64, dtype=torch.float16, seed=0, scale=8000.0)
    norm_weight = wide(64, dtype=torch.float16, seed=3, scale=20.0)
    weight = matrix(32, 64, dtype=torch.float16) * 0.05
    expected = product(normed(x, norm_weight=norm_weight), weight=weight)
    assert_near(norm_linear(x, norm_weight=norm_weight, eps=EPS, weight=weight), expected)


@pytest.mark.parametrize(("n_tokens", "n_in"), [(1, 600), (2, 48), (5, 48), (16, 300)])
def test_every_configuration_computes_the_same(n_tokens: int, n_in: int) -> None:
    dtype = torch.float16
    x = wide(n_tokens, n_in, dtype=dtype, seed=0)
    norm_weight = wide(n_in, dtype=dtype, seed=3)
    weight = matrix(2 * 18, n_in, dtype=dtype)
    norm: Any = {"norm_weight": norm_weight, "eps": EPS}
    expected = gated(normed(x, norm_weight=norm_weight), weight=weight)
    candidates = configurations(n_tokens=n_tokens, n_in=n_in)
    assert len(set(candidates)) == len(candidates) > 0
    for tiles in candidates:
        assert_near(norm_gate_up_swiglu(x, **norm, weight=weight, tiles=tiles), expected)


def test_tiles_of_the_other_form_may_be_asked_for() -> None:
    x = wide(3, 96, dtype=torch.float32, seed=0)
    weight = matrix(40, 96, dtype=torch.float32)
    tiles = LinearTiles(block_out=16, block_in=32, n_warps=4, n_stages=2)
    assert_near(linear(x, weight=weight, tiles=tiles), product(x, weight=weight))


def test_one_layer_of_the_target_shape() -> None:
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    n_tokens, hidden, n = (2, 1024, 3072) if ON_GPU else (1, 256, 24)
    residual = wide(n_tokens, hidden, dtype=dtype, seed=0)
    norm_weight = wide(hidden, dtype=dtype, seed=1)
    gate_up = matrix(2 * n, hidden, dtype=dtype, seed=2)
    down = matrix(hidden, n, dtype=dtype, seed=3)
    inner = gated(normed(residual, norm_weight=norm_weight), weight=gate_up).to(dtype)
    expected = residual.double() + product(inner, weight=down)
    actual = norm_gate_up_swiglu(residual, norm_weight=norm_weight, eps=EPS, weight=gate_up)
    linear_add(actual, weight=down, residual=residual)
    assert_near(residual, expected)


@pytest.mark.skipif(not ON_GPU, reason="the interpreter knows no dependent launch")
@pytest.mark.parametrize("n_tokens", [1, 16])
def test_dependent_launches_read_what_the_ones_before_wrote(
    n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, hidden, n_layers = torch.bfloat16, 1024, 24
    norm: Any = {"norm_weight": wide(hidden, dtype=dtype, seed=98), "eps": EPS}
    weights = [matrix(2 * hidden, hidden, dtype=dtype, seed=i) for i in range(n_layers)]
    outcomes = []
    for is_dependent in (False, *([True] * 10)):
        monkeypatch.setattr(dependent_launch, "IS_ON", is_dependent)
        residual = wide(n_tokens, hidden, dtype=dtype, seed=99)
        for weight in weights:
            inner = norm_gate_up_swiglu(residual, **norm, weight=weight)
            linear_add(inner, weight=weight[:hidden], residual=residual)
        outcomes.append(residual)
    assert outcomes[0].isfinite().all()
    # The order of every sum is fixed: equal to the last bit.
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


def test_more_tokens_than_it_is_for_are_refused() -> None:
    x = wide(MAX_TOKENS + 1, 32, dtype=torch.float32, seed=0)
    with pytest.raises(ValueError, match="at most 16 tokens, not 17"):
        linear(x, weight=matrix(8, 32, dtype=torch.float32))
