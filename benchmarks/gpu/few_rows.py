"""What a step of few rows takes on a GPU, and which tiles its kernels should have.

   python -m benchmarks.gpu.few_rows --output FILE

All layers of a step in a graph, each with weights of its own so that no cache holds them: as steps
of many rows are computed, and with the kernels for few, in order and started before the one before
has ended; then with the tiles of one of those kernels varied at a time. They are compiled by
several processes beforehand, into Triton's cache.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.child import Child, child_options
from benchmarks.gpu.rates import seconds_of
from benchmarks.gpu.shape import QWEN3_0_6B
from engine_service.kernels.device import PagedRows
from engine_service.kernels.triton import dependent_launch
from engine_service.kernels.triton.few_rows_attention import FewRowsTiling, rotate_store_attend
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.kernels.triton.linear import (
    LinearTiles,
    configurations,
    linear_add,
    norm_gate_up_swiglu,
    norm_linear,
)
from engine_service.runner.few_rows import FewRows
from engine_service.runner.layer_weights import LayerWeights

SHAPE: Final = QWEN3_0_6B
CONTEXT: Final = 512
MAX_CONTEXT: Final = 4096
BLOCK_SIZE: Final = 16
EPS: Final = 1e-6
N_ROUNDS: Final = 20
N_PROCESSES: Final = 14
# Tiles are varied for these; of 8 rows only the time is of interest.
VARIED_ROWS: Final = (1, 2, 4)
N_ROWS: Final = (*VARIED_ROWS, 8)
ATTENTION: Final = "attention"
PRODUCTS: Final = {"qkv": 1024, "output": 2048, "gate_up": 1024, "down": 3072, "head": 1024}
Tiles = LinearTiles | FewRowsTiling


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * scale


def weight(n_out: int, n_in: int) -> Tensor:
    return normal(n_out, n_in, scale=n_in**-0.5)


class Weights:
    def __init__(self, n_layers: int) -> None:
        hidden, inner, dim = SHAPE.hidden_size, SHAPE.intermediate_size, SHAPE.head_dim
        ones, head_ones = normal(hidden) * 0 + 1, normal(dim) * 0 + 1
        self.layers = [
            LayerWeights(
                attention_norm=ones,
                qkv=weight((SHAPE.n_heads + 2 * SHAPE.n_kv_heads) * dim, hidden),
                qkv_bias=None,
                q_norm=head_ones,
                k_norm=head_ones,
                output=weight(hidden, SHAPE.n_heads * dim),
                feed_forward_norm=ones,
                gate_up=weight(2 * inner, hidden),
                down=weight(hidden, inner),
            )
            for _ in range(n_layers)
        ]
        self.norm, self.head = ones, weight(SHAPE.vocab_size, hidden)
        self.rotary = torch.rand(MAX_CONTEXT, dim, device="cuda")


class Chain:
    """One step of ``n_rows`` rows; the contexts' blocks lie in no order."""

    def __init__(self, weights: Weights, *, n_rows: int) -> None:
        self.weights, self.n_rows = weights, n_rows
        width = MAX_CONTEXT // BLOCK_SIZE
        used = -(-CONTEXT // BLOCK_SIZE)
        n_blocks = n_rows * used
        table = torch.zeros(n_rows, width, dtype=torch.int32, device="cuda")
        table[:, :used] = torch.randperm(n_blocks, device="cuda").view(n_rows, used)
        pools = normal(
            len(weights.layers), 2, n_blocks, SHAPE.n_kv_heads, BLOCK_SIZE, SHAPE.head_dim
        ).transpose(3, 4)
        self.caches = [(pool[0], pool[1]) for pool in pools]
        lengths = torch.full((n_rows,), CONTEXT, dtype=torch.int32, device="cuda")
        self.rows = PagedRows(block_tables=table, context_lens=lengths)
        self.positions = lengths - 1
        place = (CONTEXT - 1) % BLOCK_SIZE
        self.slots = table[:, used - 1] * BLOCK_SIZE + place
        self.counters = torch.zeros(n_rows * SHAPE.n_kv_heads, dtype=torch.int32, device="cuda")
        self.start = normal(n_rows, SHAPE.hidden_size)
        self.x = self.start.clone()
        self.attended = normal(n_rows, SHAPE.n_heads * SHAPE.head_dim)
        self.inner = normal(n_rows, SHAPE.intermediate_size)
        self.heads = normal(n_rows, SHAPE.n_heads + 2 * SHAPE.n_kv_heads, SHAPE.head_dim)

    def qkv(self, layer: LayerWeights, tiles: Any) -> Tensor:
        found = norm_linear(
            self.x, norm_weight=layer.attention_norm, eps=EPS, weight=layer.qkv, tiles=tiles
        )
        return found.view(self.n_rows, -1, SHAPE.head_dim)

    def attention(self, i: int, qkv: Tensor, tiles: Any) -> Tensor:
        layer, (k_cache, v_cache) = self.weights.layers[i], self.caches[i]
        return rotate_store_attend(
            qkv,
            rotary=self.weights.rotary,
            positions=self.positions,
            slots=self.slots,
            k_cache=k_cache,
            v_cache=v_cache,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=EPS,
            rows=self.rows,
            scale=SHAPE.head_dim**-0.5,
            counters=self.counters,
            tiling=tiles,
        )

    def gate_up(self, layer: LayerWeights, tiles: Any) -> Tensor:
        return norm_gate_up_swiglu(
            self.x, norm_weight=layer.feed_forward_norm, eps=EPS, weight=layer.gate_up, tiles=tiles
        )

    def head(self, tiles: Any) -> Tensor:
        weights = self.weights
        return norm_linear(
            self.x, norm_weight=weights.norm, eps=EPS, weight=weights.head, tiles=tiles
        )

    def run(self, tiles: dict[str, Tiles]) -> None:
        self.x.copy_(self.start)
        for i, layer in enumerate(self.weights.layers):
            attended = self.attention(i, self.qkv(layer, tiles.get("qkv")), tiles.get(ATTENTION))
            linear_add(attended, weight=layer.output, residual=self.x, tiles=_of(tiles, "output"))
            inner = self.gate_up(layer, tiles.get("gate_up"))
            linear_add(inner, weight=layer.down, residual=self.x, tiles=_of(tiles, "down"))
        self.head(tiles.get("head"))

    def run_one(self, name: str, tiles: Any) -> None:
        """Run one kernel of each layer alone."""
        for i, layer in enumerate(self.weights.layers):
            if name == "qkv":
                self.qkv(layer, tiles)
            elif name == ATTENTION:
                self.attention(i, self.heads, tiles)
            elif name == "output":
                linear_add(self.attended, weight=layer.output, residual=self.x, tiles=tiles)
            elif name == "gate_up":
                self.gate_up(layer, tiles)
            elif name == "down":
                linear_add(self.inner, weight=layer.down, residual=self.x, tiles=tiles)
        if name == "head":
            self.head(tiles)

    def reference(self, kernels: Any) -> Tensor:
        """The same through ``FewRows``, the path of the engine, with the tiles that it takes."""
        weights = self.weights
        few = FewRows(
            kernels=kernels,
            layers=weights.layers,
            norm=weights.norm,
            head=weights.head,
            rotary=weights.rotary,
            eps=EPS,
            head_dim=SHAPE.head_dim,
            max_rows=self.n_rows,
            counters=self.counters,
        )
        self.x.copy_(self.start)
        return few.logits(
            self.x,
            positions=self.positions,
            slots=self.slots,
            rows=self.rows,
            caches=self.caches,
            scale=SHAPE.head_dim**-0.5,
        )

    def ordinary(self, kernels: Any) -> Tensor:
        """The same as a step of many rows."""
        weights = self.weights
        self.x.copy_(self.start)
        x = kernels.rms_norm(self.x, weight=weights.norm, eps=EPS)
        for layer, (k_cache, v_cache) in zip(weights.layers, self.caches, strict=True):
            q = kernels.rotate_and_store(
                functional.linear(x, layer.qkv).view(self.n_rows, -1, SHAPE.head_dim),
                rotary=weights.rotary,
                positions=self.positions,
                slots=self.slots,
                k_cache=k_cache,
                v_cache=v_cache,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=EPS,
            )
            scale = SHAPE.head_dim**-0.5
            x = kernels.decode_attention(
                q, k_cache=k_cache, v_cache=v_cache, rows=self.rows, scale=scale
            )
            x = functional.linear(x, layer.output)
            x = kernels.add_rms_norm(x, residual=self.x, weight=layer.feed_forward_norm, eps=EPS)
            x = functional.linear(kernels.swiglu(functional.linear(x, layer.gate_up)), layer.down)
            x = kernels.add_rms_norm(x, residual=self.x, weight=layer.attention_norm, eps=EPS)
        return functional.linear(x, weights.head)


def _of(tiles: dict[str, Tiles], name: str) -> LinearTiles | None:
    found = tiles.get(name)
    return found if isinstance(found, LinearTiles) else None


def in_graph_s(work: Callable[[], object]) -> float:
    """Return the median time of one replay of ``work``, without what launching it costs."""
    work()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return seconds_of(graph.replay, device="cuda", n_rounds=N_ROUNDS)


def candidates(name: str, *, n_rows: int) -> list[Tiles]:
    if name == ATTENTION:
        return [
            FewRowsTiling(kv_tokens=kv_tokens, n_splits=n_splits, n_warps=n_warps)
            for kv_tokens in (16, 32, 64)
            for n_splits in (8, 16, 32)
            for n_warps in (2, 4)
        ]
    return list(configurations(n_tokens=n_rows, n_in=PRODUCTS[name]))


@dataclass(slots=True)
class _Worker:
    chains: dict[int, Chain] = field(default_factory=dict)


_worker = _Worker()


def compile_one(n_rows: int, name: str, tiles: Tiles) -> None:
    """Runs in a process of its own: one launch, of one layer."""
    if n_rows not in _worker.chains:
        _worker.chains[n_rows] = Chain(Weights(1), n_rows=n_rows)
    try:
        _worker.chains[n_rows].run_one(name, tiles)
    except OutOfResources:
        return


def compile_all(n_rows: tuple[int, ...]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_PROCESSES, mp_context=context) as pool:
        work = [
            pool.submit(compile_one, n, name, tiles)
            for name in (*PRODUCTS, ATTENTION)
            for n in n_rows
            for tiles in candidates(name, n_rows=n)
        ]
        for each in work:
            each.result()


def vary(chain: Chain, child: Child) -> dict[str, Tiles]:
    """Return the best tiles, found for one kernel after the other with the best of those before."""
    best: dict[str, Tiles] = {}
    best_s = in_graph_s(partial(chain.run, best))
    for name in (*PRODUCTS, ATTENTION):
        times: list[tuple[float, Tiles]] = []
        for tiles in candidates(name, n_rows=chain.n_rows):
            trial = best | {name: tiles}
            try:
                times.append((in_graph_s(partial(chain.run, trial)), tiles))
            except OutOfResources:
                continue
        times.sort(key=lambda each: each[0])
        found = [f"{took_s * 1e6:.1f} us {tiles}" for took_s, tiles in times[:3]]
        child.put(f"chain of {chain.n_rows} by {name}, was {best_s * 1e6:.1f}", found)
        if times and times[0][0] < best_s:
            best_s, best[name] = times[0]
    return best


def kernel_times(chain: Chain, tiles: dict[str, Tiles]) -> dict[str, float]:
    """Return the microseconds of each kernel, of one layer."""
    return {
        name: round(
            in_graph_s(partial(chain.run_one, name, tiles.get(name)))
            * 1e6
            / (1 if name == "head" else len(chain.weights.layers)),
            2,
        )
        for name in (*PRODUCTS, ATTENTION)
    }


def measure(child: Child) -> None:
    weights = Weights(SHAPE.n_layers)
    kernels = TritonKernels()
    chains = {n_rows: Chain(weights, n_rows=n_rows) for n_rows in N_ROWS}
    for n_rows, chain in chains.items():
        found = {"of many": round(in_graph_s(partial(chain.ordinary, kernels)) * 1e6, 1)}
        for is_on in (False, True):
            dependent_launch.IS_ON = is_on
            took_s = in_graph_s(partial(chain.reference, kernels))
            found["dependent" if is_on else "in order"] = round(took_s * 1e6, 1)
        child.put(f"chain of {n_rows}, us", found)
        child.put(f"kernels of {n_rows}, us", kernel_times(chain, {}))
    compile_all(VARIED_ROWS)
    for n_rows in VARIED_ROWS:
        chain = chains[n_rows]
        best = vary(chain, child)
        child.put(f"best tiles of {n_rows}", {name: str(tiles) for name, tiles in best.items()})
        took_s = in_graph_s(partial(chain.run, best))
        child.put(f"best chain of {n_rows}, us", round(took_s * 1e6, 1))
        child.put(f"best kernels of {n_rows}, us", kernel_times(chain, best))


def main() -> None:
    options = child_options(__doc__)
    child = Child(options.output)
    if options.device == "cpu":
        child.put("left_out", "kernels for a GPU are timed on one")
        return
    with torch.inference_mode():
        measure(child)


if __name__ == "__main__":
    main()
