"""What the engine's kernels do with the bandwidth, each by itself, in CUDA graphs.

    python -m benchmarks.gpu.micro --device cuda --output FILE

At the sizes of the model that is measured: 256 sequences of 1,100 tokens, and one alone. Products
by weights of eight bits stand beside those by bfloat16 ones.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.child import Child, child_options
from benchmarks.gpu.rates import seconds_of
from benchmarks.gpu.shape import QWEN3_0_6B
from engine_service.kernels.device import PagedRows, SamplingTensors
from engine_service.kernels.quantization import Kind, quantize_weight
from engine_service.kernels.triton import (
    activation,
    attention,
    norms,
    quantized_linear,
    rotary,
    sampling,
)

SHAPE: Final = QWEN3_0_6B
BLOCK_SIZE: Final = 16
CONTEXT: Final = 1100
N_PROMPT: Final = 1024
SCALE: Final = SHAPE.head_dim**-0.5
EPS: Final = 1e-6
N_ROWS: Final = (256, 1)
# The model's product of the most weights, and one that no cache of a GPU holds.
MATRICES: Final = ((2 * SHAPE.intermediate_size, SHAPE.hidden_size), (8192, 8192))
PRODUCT_ROWS: Final = (1, 16, 256, 2048)
PRODUCTS_S: Final = 8.0  # then no further one is begun
KINDS: Final[tuple[Kind, ...]] = ("int8", "fp8")

Case = tuple[Callable[[], object], float]  # work, and the bytes that it must move


def in_graph_s(work: Callable[[], object]) -> float:
    """Return the median time of one replay of ``work``, without what launching it costs."""
    work()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return seconds_of(graph.replay, device="cuda")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def ints(*shape: int, start: int = 0) -> Tensor:
    n = torch.Size(shape).numel()
    return torch.arange(start, start + n, dtype=torch.int32, device="cuda").view(shape)


class Pool:
    """K and V of one layer for ``n_rows`` contexts, their blocks in no order."""

    def __init__(self, n_rows: int, *, context: int = CONTEXT) -> None:
        width = -(-context // BLOCK_SIZE)
        size = (n_rows * width, BLOCK_SIZE, SHAPE.n_kv_heads, SHAPE.head_dim)
        self.k, self.v = normal(*size), normal(*size)
        order = torch.randperm(n_rows * width, device="cuda")
        self.table = order.int().view(n_rows, width)
        self.lengths = torch.full((n_rows,), context, dtype=torch.int32, device="cuda")
        self.n_bytes = 2 * 2 * n_rows * context * SHAPE.n_kv_heads * SHAPE.head_dim


def cases(n_rows: int) -> dict[str, Case]:
    """Return what runs once or more in each layer of a decode step, and the draw at its end."""
    hidden, heads = SHAPE.hidden_size, SHAPE.n_heads + 2 * SHAPE.n_kv_heads
    pool = Pool(n_rows)
    rows = PagedRows(block_tables=pool.table, context_lens=pool.lengths)
    q = normal(n_rows, SHAPE.n_heads, SHAPE.head_dim)
    x, residual, weight = normal(n_rows, hidden), normal(n_rows, hidden), normal(hidden)
    qkv, head_norm = normal(n_rows, heads, SHAPE.head_dim), normal(SHAPE.head_dim)
    table = torch.randn(4096, SHAPE.head_dim, device="cuda")
    positions, slots = ints(n_rows, start=CONTEXT), ints(n_rows) * BLOCK_SIZE
    gate_up = normal(n_rows, 2 * SHAPE.intermediate_size)
    logits = normal(n_rows, SHAPE.vocab_size)
    plain, filtered = (_sampling(n_rows, is_filtered=flag) for flag in (False, True))
    kv_bytes = 2 * 2 * n_rows * SHAPE.n_kv_heads * SHAPE.head_dim
    return {
        "decode attention": (
            lambda: attention.decode_attention(
                q, k_cache=pool.k, v_cache=pool.v, rows=rows, scale=SCALE
            ),
            pool.n_bytes,
        ),
        "add and norm": (
            lambda: norms.add_rms_norm(x, residual=residual, weight=weight, eps=EPS),
            4 * 2 * x.numel(),
        ),
        "rotate and store": (
            lambda: rotary.rotate_and_store(
                qkv,
                rotary=table,
                positions=positions,
                slots=slots,
                k_cache=pool.k,
                v_cache=pool.v,
                q_norm=head_norm,
                k_norm=head_norm,
                eps=EPS,
            ),
            2 * 2 * qkv.numel() + kv_bytes,
        ),
        "swiglu": (lambda: activation.swiglu(gate_up), 3 * gate_up.numel()),
        "sample": (lambda: sampling.sample(logits, sampling=plain), 2 * logits.numel()),
        "sample, top-k and top-p": (
            lambda: sampling.sample(logits, sampling=filtered),
            2 * logits.numel(),
        ),
    }


def _sampling(n_rows: int, *, is_filtered: bool) -> SamplingTensors:
    def full(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((n_rows,), value, dtype=dtype, device="cuda")

    return SamplingTensors(
        temperature=full(0.6, torch.float32),
        top_k=full(50 if is_filtered else 0, torch.int32),
        top_p=full(0.9 if is_filtered else 1.0, torch.float32),
        min_p=full(0.0, torch.float32),
        uniform=torch.rand(n_rows, dtype=torch.float64, device="cuda"),
        filtered=is_filtered,
        drawn=True,
    )


def prefill(n_rows: int) -> tuple[float, float]:
    """Return the seconds of attention of whole prompts, and the operations that it must do."""
    pool = Pool(n_rows, context=N_PROMPT)
    rows = PagedRows(
        block_tables=pool.table,
        context_lens=pool.lengths,
        query_starts=ints(n_rows + 1) * N_PROMPT,
        max_query_len=N_PROMPT,
    )
    q = normal(n_rows * N_PROMPT, SHAPE.n_heads, SHAPE.head_dim)
    took_s = in_graph_s(
        lambda: attention.prefill_attention(
            q, k_cache=pool.k, v_cache=pool.v, rows=rows, scale=SCALE
        )
    )
    pairs = n_rows * N_PROMPT * (N_PROMPT + 1) / 2
    return took_s, 4.0 * pairs * SHAPE.n_heads * SHAPE.head_dim


class Product:
    """By one matrix in each type."""

    def __init__(self, n_out: int, n_in: int) -> None:
        self._n_in = n_in
        self._weight = normal(n_out, n_in)
        self._quantized = {kind: quantize_weight(self._weight, kind=kind) for kind in KINDS}
        self.name = f"{n_in} x {n_out}"

    def times(self, n_rows: int) -> dict[str, float]:
        """Return the microseconds of so many rows. Replayed, a small matrix comes from the
        second-level cache in every type."""
        x = normal(n_rows, self._n_in)
        works = {"bfloat16": partial(functional.linear, x, self._weight)}
        for kind, packed in self._quantized.items():
            works[kind] = partial(quantized_linear.quantized_linear, x, weight=packed, bias=None)
        return {f"us_{name}": round(in_graph_s(work) * 1e6, 1) for name, work in works.items()}


def measure_products(child: Child) -> None:
    """Compiling takes most of the time: what there is none for is said to be left out."""
    deadline_s = time.monotonic() + PRODUCTS_S
    products = [Product(*shape) for shape in MATRICES]
    for n_rows, product in itertools.product(PRODUCT_ROWS, products):
        has_time = time.monotonic() < deadline_s
        found = product.times(n_rows) if has_time else {"left_out": "time is short"}
        child.put(f"product, {n_rows} x {product.name}", found)


def main() -> None:
    options = child_options(__doc__)
    child = Child(options.output)
    if options.device == "cpu":
        child.put("left_out", "kernels for a GPU are timed on one")
        return
    for n_rows in N_ROWS:
        for name, (work, n_bytes) in cases(n_rows).items():
            child.put(f"{name}, {n_rows}", figures(in_graph_s(work), n_bytes=n_bytes))
    took_s, flop = prefill(16)
    found = {"us": round(took_s * 1e6, 1), "tflop_per_s": round(flop / took_s / 1e12, 1)}
    child.put(f"prefill attention, 16 x {N_PROMPT}", found)
    measure_products(child)


def figures(took_s: float, *, n_bytes: float) -> dict[str, Any]:
    return {"us": round(took_s * 1e6, 1), "tb_per_s": round(n_bytes / took_s / 1e12, 3)}


if __name__ == "__main__":
    main()
