"""A module ``flash_attn`` for nano-vllm where that package is not installed.

    python -m benchmarks.gpu.flash_attn_shim CANDIDATE    checks and times one of them

nano-vllm needs two functions of it, ``flash_attn_varlen_func`` for prompts and
``flash_attn_with_kvcache`` for decoding over a paged cache. ``install`` gives it the best that is
there: the candidates are each checked against plain arithmetic, then timed in a CUDA graph at the
size of the benchmark, and the fastest wins. What was found of each is told with the result, since a
figure through a stand-in is not nano-vllm's own.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu.paged_attention import (
    Attention,
    FlashAttention4,
    PagesAsSequences,
    TorchPaged,
    attend_plainly,
)
from benchmarks.gpu.rates import seconds_of

NAME: Final = "flash_attn"
TOLERANCE: Final = 2e-2
PAGE_SIZE: Final = 256  # nano-vllm's smallest
N_HEADS, N_KV_HEADS, HEAD_DIM = 16, 8, 128
SCALE: Final = HEAD_DIM**-0.5
PROBE_TIMEOUT_S: Final = 75.0
CANDIDATES: Final[dict[str, Callable[[], Attention]]] = {
    "fa4": FlashAttention4,
    "paged": TorchPaged,
    "pages": PagesAsSequences,
}


def install() -> dict[str, Any]:
    """Make ``import flash_attn`` work; return what it stands for.

    The report has ``attention``, what is used, ``is_flash_attn``, whether that is a package of
    theirs, and ``candidates``: microseconds of a decode, or why not.

    Raises:
        RuntimeError: no candidate works here.
    """
    if version := _installed_version():
        return {"attention": f"flash-attn {version}", "is_flash_attn": True, "candidates": {}}
    found = {name: _probed(name) for name in CANDIDATES}
    times_us = {name: value for name, value in found.items() if isinstance(value, float)}
    if not times_us:
        raise RuntimeError(f"no stand-in for flash_attn works here: {found}")
    best = min(times_us, key=lambda name: times_us[name])
    attention = CANDIDATES[best]()
    _register(attention)
    return {
        "attention": attention.name,
        "is_flash_attn": isinstance(attention, FlashAttention4),
        "candidates": found,
    }


def _probed(name: str) -> float | str:
    """Return the microseconds of one, or why it cannot be; in a process of its own, since a kernel
    that fails takes the device's context with it."""
    command = [sys.executable, "-m", "benchmarks.gpu.flash_attn_shim", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"took more than {PROBE_TIMEOUT_S:.0f} s"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return (said or ["said nothing"])[-1][:300]
    return float(done.stdout.split()[-1])


def _installed_version() -> str | None:
    """Return the version of the real package; flash-attn-4 alone has no such functions."""
    try:
        module = importlib.import_module(NAME)
    except ImportError:
        return None
    if hasattr(module, "flash_attn_varlen_func") and hasattr(module, "flash_attn_with_kvcache"):
        return str(getattr(module, "__version__", "of unknown version"))
    return None


def _register(attention: Attention) -> None:
    module = sys.modules.get(NAME) or ModuleType(NAME)
    functions: dict[str, Callable[..., Tensor]] = {
        "flash_attn_varlen_func": _varlen_func(attention),
        "flash_attn_with_kvcache": _with_kvcache(attention),
    }
    for name, function in functions.items():
        setattr(module, name, function)
    sys.modules[NAME] = module


def _varlen_func(attention: Attention) -> Callable[..., Tensor]:
    """The part of the function's signature that nano-vllm uses; any other is an error."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        max_seqlen_q: int,
        cu_seqlens_q: Tensor,
        max_seqlen_k: int,
        cu_seqlens_k: Tensor,
        softmax_scale: float,
        causal: bool,
        block_table: Tensor | None = None,
    ) -> Tensor:
        assert causal
        return attention.prefill(
            q,
            k,
            v,
            starts_q=cu_seqlens_q,
            starts_k=cu_seqlens_k,
            max_q=max_seqlen_q,
            max_k=max_seqlen_k,
            scale=softmax_scale,
            table=block_table,
        )

    return flash_attn_varlen_func


def _with_kvcache(attention: Attention) -> Callable[..., Tensor]:
    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        block_table: Tensor,
        softmax_scale: float,
        causal: bool,
    ) -> Tensor:
        assert causal
        assert q.shape[1] == 1
        return attention.decode(
            q[:, 0], k_cache, v_cache, lengths=cache_seqlens, table=block_table, scale=softmax_scale
        ).unsqueeze(1)

    return flash_attn_with_kvcache


def check(attention: Attention, *, device: str) -> None:
    """Compare with plain arithmetic: decoding, prompts behind a cached prefix, whole prompts."""
    rng = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=rng).bfloat16()

    def ints(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    k, v = (normal(12, PAGE_SIZE, N_KV_HEADS, HEAD_DIM) for _ in range(2))
    table, lengths = ints([[7, 3, 9], [2, 0, 11], [5, -1, -1], [0, 0, 0]]), ints([700, 513, 1, 0])
    q = normal(4, N_HEADS, HEAD_DIM)
    got = attention.decode(q, k, v, lengths=lengths, table=table, scale=SCALE)
    wanted = attend_plainly(
        q, starts_q=ints([0, 1, 2, 3, 4]), k=k, v=v, table=table, lengths=lengths, scale=SCALE
    )
    _require_close(got[:3], wanted[:3], what="decoding")

    # Two rows of which only the last 200 and 13 tokens are new.
    table, lengths, starts = table[:2], lengths[:2], ints([0, 200, 213])
    q = normal(213, N_HEADS, HEAD_DIM)
    limits = {"max_q": 200, "max_k": 700, "scale": SCALE}
    got = attention.prefill(
        q, k, v, starts_q=starts, starts_k=ints([0, 700, 1213]), table=table, **limits
    )
    wanted = attend_plainly(q, starts_q=starts, k=k, v=v, table=table, lengths=lengths, scale=SCALE)
    _require_close(got, wanted, what="prompts behind a cached prefix")

    # The first page and a bit of the second, read as keys that stand one after the other.
    starts, n = ints([0, PAGE_SIZE, PAGE_SIZE + 13]), PAGE_SIZE + 13
    q = normal(n, N_HEADS, HEAD_DIM)
    flat_k, flat_v = k.flatten(0, 1)[:n], v.flatten(0, 1)[:n]
    limits |= {"max_q": PAGE_SIZE, "max_k": PAGE_SIZE}
    got = attention.prefill(
        q, flat_k, flat_v, starts_q=starts, starts_k=starts, table=None, **limits
    )
    wanted = attend_plainly(
        q, starts_q=starts, k=k, v=v, table=ints([[0], [1]]), lengths=starts.diff(), scale=SCALE
    )
    _require_close(got, wanted, what="prompts")


def _require_close(got: Tensor, wanted: Tensor, *, what: str) -> None:
    error = (got.float() - wanted.float()).abs().max().item()
    if not error < TOLERANCE:
        raise RuntimeError(f"{what} is wrong by {error:.3f}")


def decode_time_us(attention: Attention, *, device: str) -> float:
    """Time decoding 256 sequences of 1,100 tokens, as nano-vllm's workload has them, in a CUDA
    graph, as nano-vllm runs it: of a table that has room for 4,096."""
    n_rows, width, n_used = 256, 16, 5
    table = torch.arange(n_rows * n_used, dtype=torch.int32, device=device).view(n_rows, n_used)
    table = torch.cat([table, table.new_zeros(n_rows, width - n_used)], dim=1)
    lengths = torch.full((n_rows,), 1100, dtype=torch.int32, device=device)
    k, v = (
        torch.randn(n_rows * n_used, PAGE_SIZE, N_KV_HEADS, HEAD_DIM, device=device).bfloat16()
        for _ in range(2)
    )
    q = torch.randn(n_rows, N_HEADS, HEAD_DIM, device=device).bfloat16()

    def decode() -> None:
        attention.decode(q, k, v, lengths=lengths, table=table, scale=SCALE)

    decode()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode()
    return seconds_of(graph.replay, device=device) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidate", choices=CANDIDATES)
    attention = CANDIDATES[parser.parse_args().candidate]()
    check(attention, device="cuda")
    print(decode_time_us(attention, device="cuda"))


if __name__ == "__main__":
    main()
