"""Norms, rotary embedding with the store of K and V, and the gate, in Triton, against the oracle:
in the interpreter, or on the GPU where there is one."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import TorchKernels
from engine_service.kernels.triton.activation import swiglu
from engine_service.kernels.triton.norms import add_rms_norm, rms_norm
from engine_service.kernels.triton.rotary import rotate_and_store

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
# One rounding more or less of the output's type.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EPS = 1e-5
ORACLE = TorchKernels()
N_TOKENS = [1, 2, 7, 70]


def assert_near(actual: Tensor, expected: Tensor, *, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def wide(*shape: int, dtype: torch.dtype, gap: int, seed: int = 0) -> Tensor:
    """A tensor whose rows lie ``gap`` NaNs apart, so that a read or write between them shows."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.full((*shape[:-1], shape[-1] + 2 * gap), float("nan"), dtype=dtype)
    inner = around[..., gap : gap + shape[-1]]
    inner.copy_(torch.randn(shape, generator=generator) * 2.0)
    return around.to(DEVICE)[..., gap : gap + shape[-1]]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out of its output is NaN instead of what lay there before."""

    def poisoned(make: Any) -> Any:
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize(
    ("n_tokens", "hidden"), [(1, 1024), (2, 8), (7, 576), (70, 96), (3, 5000), (0, 64)]
)
def test_rms_norm(n_tokens: int, hidden: int, gap: int, dtype: torch.dtype) -> None:
    x = wide(n_tokens, hidden, dtype=dtype, gap=gap)
    weight = wide(hidden, dtype=dtype, gap=gap, seed=1)
    actual = rms_norm(x, weight=weight, eps=EPS)
    assert actual.is_contiguous()
    assert_near(actual, ORACLE.rms_norm(x, weight=weight, eps=EPS), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual_dtype", [torch.float32, None])
@pytest.mark.parametrize(("n_tokens", "hidden"), [(1, 1024), (2, 8), (7, 576), (70, 96)])
def test_add_rms_norm(
    n_tokens: int, hidden: int, residual_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    residual_dtype = residual_dtype or dtype
    x = wide(n_tokens, hidden, dtype=dtype, gap=3)
    residual = wide(n_tokens, hidden, dtype=residual_dtype, gap=8, seed=1)
    weight = wide(hidden, dtype=dtype, gap=0, seed=2)
    expected_residual = residual.clone()
    expected = ORACLE.add_rms_norm(x, residual=expected_residual, weight=weight, eps=EPS)
    before = x.clone()
    actual = add_rms_norm(x, residual=residual, weight=weight, eps=EPS)
    assert_near(actual, expected, dtype=dtype)
    assert_near(residual, expected_residual, dtype=residual_dtype)
    assert torch.equal(x, before)


def test_a_norm_of_small_values_keeps_eps() -> None:
    x = wide(3, 64, dtype=torch.float32, gap=0) * 1e-4
    weight = torch.ones(64, device=DEVICE)
    expected = ORACLE.rms_norm(x, weight=weight, eps=1e-2)
    assert_near(rms_norm(x, weight=weight, eps=1e-2), expected, dtype=torch.float32)
    assert expected.abs().max() < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize(("n_tokens", "n"), [(1, 3072), (2, 8), (7, 1500), (70, 48), (0, 16)])
def test_swiglu(n_tokens: int, n: int, gap: int, dtype: torch.dtype) -> None:
    gate_up = wide(n_tokens, 2 * n, dtype=dtype, gap=gap) * 4.0
    assert_near(swiglu(gate_up), ORACLE.swiglu(gate_up), dtype=dtype)


def test_swiglu_of_large_gates() -> None:
    gate_up = torch.tensor([[-200.0, -90.0, 90.0, 200.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    assert_near(swiglu(gate_up), ORACLE.swiglu(gate_up), dtype=torch.float32)


class Pool:
    """K and V of one layer as views of a pool full of NaN, as the engine lays them out."""

    def __init__(self, *, n_kv_heads: int, head_dim: int, layout: str, dtype: torch.dtype) -> None:
        n_blocks, block_size = 24, 4
        nan = float("nan")
        if layout == "side by side":
            shape = (n_blocks, block_size, 2, n_kv_heads, head_dim)
            self.whole = torch.full(shape, nan, dtype=dtype, device=DEVICE)
            self.k, self.v = self.whole.unbind(2)
        elif layout == "apart":
            shape = (2, n_blocks, block_size, n_kv_heads, head_dim)
            self.whole = torch.full(shape, nan, dtype=dtype, device=DEVICE)
            self.k, self.v = self.whole.unbind(0)
        else:
            # Heads outside, K and V at odd places of a wider row.
            shape = (n_kv_heads, n_blocks, block_size, 3 * head_dim + 1)
            self.whole = torch.full(shape, nan, dtype=dtype, device=DEVICE)
            by_block = self.whole.permute(1, 2, 0, 3)
            self.k = by_block[..., 1 : head_dim + 1]
            self.v = by_block[..., 2 * head_dim : 3 * head_dim]
        self.n_slots = n_blocks * block_size


def rotate_case(
    *, n_tokens: int, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int
) -> dict[str, Tensor]:
    """Tokens of any position in slots of any order, each third of them without one."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    max_model_len = 200
    angles = torch.rand(max_model_len, head_dim // 2, generator=generator) * 6.0
    slots = rng.sample(range(96), n_tokens)
    slots = [-1 if rng.random() < 0.3 else slot for slot in slots]
    positions = [rng.randrange(max_model_len) for _ in range(n_tokens)]
    # Heads of a token in a row that other things stand beside.
    n_all_heads = n_heads + 2 * n_kv_heads
    flat = wide(n_tokens, n_all_heads * head_dim, dtype=dtype, gap=16, seed=seed)
    return {
        "qkv": flat.unflatten(-1, (n_all_heads, head_dim)),
        "rotary": torch.cat((angles.cos(), angles.sin()), dim=-1).to(DEVICE),
        "positions": torch.tensor(positions, dtype=torch.int32, device=DEVICE),
        "slots": torch.tensor(slots, dtype=torch.int32, device=DEVICE),
    }


def check_rotate(
    case: dict[str, Tensor],
    *,
    n_heads: int,
    n_kv_heads: int,
    layout: str = "side by side",
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> None:
    qkv = case["qkv"]
    head_dim, dtype = qkv.shape[-1], qkv.dtype
    pools = [
        Pool(n_kv_heads=n_kv_heads, head_dim=head_dim, layout=layout, dtype=dtype) for _ in range(2)
    ]
    before = qkv.clone()
    norms: Any = {"q_norm": q_norm, "k_norm": k_norm, "eps": EPS}
    expected = ORACLE.rotate_and_store(
        **{**case, "qkv": before.clone()}, k_cache=pools[0].k, v_cache=pools[0].v, **norms
    )
    actual = rotate_and_store(**case, k_cache=pools[1].k, v_cache=pools[1].v, **norms)
    assert actual.shape == (len(qkv), n_heads, head_dim)
    assert actual.data_ptr() == qkv.data_ptr() or not len(qkv)
    assert_near(actual, expected, dtype=dtype)
    assert torch.equal(qkv[:, n_heads:], before[:, n_heads:])
    written = ~pools[0].whole.isnan()
    assert torch.equal(~pools[1].whole.isnan(), written)
    n_kept = int((case["slots"] >= 0).sum())
    assert int(written.sum()) == n_kept * 2 * n_kv_heads * head_dim
    assert_near(pools[1].whole[written], pools[0].whole[written], dtype=dtype)
    # V is copied, not computed.
    assert torch.equal(pools[1].v.nan_to_num(), pools[0].v.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"),
    [(4, 2, 8), (2, 1, 32), (14, 2, 64), (3, 3, 80), (4, 1, 96), (16, 8, 128), (4, 2, 256)],
)
def test_rotate_and_store(n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    q_norm, k_norm = (wide(head_dim, dtype=dtype, gap=3, seed=i) for i in (1, 2))
    for seed, (n_tokens, has_norms, layout) in enumerate(
        [(1, True, "side by side"), (5, True, "heads outside"), (3, False, "apart")]
    ):
        case = rotate_case(
            n_tokens=n_tokens,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            seed=seed,
        )
        check_rotate(
            case,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            layout=layout,
            q_norm=q_norm if has_norms else None,
            k_norm=k_norm if has_norms else None,
        )


@pytest.mark.parametrize("n_tokens", [0, *N_TOKENS])
def test_rotate_and_store_of_many_tokens(n_tokens: int) -> None:
    sizes = {"n_heads": 4, "n_kv_heads": 2}
    case = rotate_case(n_tokens=n_tokens, **sizes, head_dim=16, dtype=torch.float16, seed=9)
    check_rotate(case, **sizes)


@pytest.mark.parametrize("which", ["q_norm", "k_norm"])
def test_only_one_of_the_norms(which: str) -> None:
    sizes = {"n_heads": 3, "n_kv_heads": 1}
    case = rotate_case(n_tokens=6, **sizes, head_dim=32, dtype=torch.float32, seed=4)
    norm: Any = {which: wide(32, dtype=torch.float32, gap=1, seed=5)}
    check_rotate(case, **sizes, **norm)


def test_what_is_not_finite_in_v_is_copied_as_it_is() -> None:
    sizes = {"n_heads": 2, "n_kv_heads": 1}
    case = rotate_case(n_tokens=4, **sizes, head_dim=8, dtype=torch.float32, seed=2)
    case["qkv"][:, 3, 0] = float("inf")
    check_rotate(case, **sizes)
