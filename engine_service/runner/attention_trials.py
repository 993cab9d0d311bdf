"""Random attention in a pool of the model's own layout: what tells whether two kernels agree, and
what they are timed with."""

import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows, RowsOnHost
from engine_service.kernels.paged_attention import AttentionShape, PagedAttention, Phase
from engine_service.runner.decode_graphs import CudaGraphApi
from engine_service.runner.device_model import KVPool, PoolShape

PHASES: Final[tuple[Phase, ...]] = ("decode", "prefill")

# Contexts to agree in, around a block's length and longer than a tile; what pads a graph has none.
_CHECKED_CONTEXTS: Final = (1, 15, 16, 17, 0, 130, 600)
# New tokens and context.
_CHECKED_PROMPTS: Final = ((2, 2), (5, 21), (17, 17), (40, 100), (129, 600))
_TIMED_ROWS: Final = (8, 64)
_TIMED_LENGTH: Final = 1024
# Absolute, and relative to the number itself: twice what rounding to the type does to each.
TOLERANCES: Final = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}
_N_ROUNDS, _N_CALLS = 5, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """max_len: most tokens of a sequence. max_rows, max_tokens: of a step."""

    max_len: int
    max_rows: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One layer of a step. q: (n_tokens, n_heads, head_dim), tokens lie apart as in a step."""

    phase: Phase
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    rows: PagedRows
    scale: float

    def run(self, attention: PagedAttention) -> Tensor:
        attend = (
            attention.decode_attention if self.phase == "decode" else attention.prefill_attention
        )
        return attend(
            self.q, k_cache=self.k_cache, v_cache=self.v_cache, rows=self.rows, scale=self.scale
        )


class Trials:
    """The cases, over one pool. Raises torch.OutOfMemoryError where the device has no room."""

    def __init__(self, shape: AttentionShape, *, limits: StepLimits) -> None:
        self._shape = shape
        self._limits = limits
        self._rng = torch.Generator(shape.device).manual_seed(0)
        self._timed_length = min(_TIMED_LENGTH, limits.max_len)
        n_timed_rows = [min(n, limits.max_rows) for n in _TIMED_ROWS]
        self._n_timed_rows = sorted(set(n_timed_rows))
        checked = [min(n, limits.max_len) for n in _CHECKED_CONTEXTS]
        pool_shape = PoolShape(
            n_layers=1,
            n_blocks=max(
                self._n_timed_rows[-1] * self._n_blocks(self._timed_length),
                sum(map(self._n_blocks, checked)),
                sum(self._n_blocks(context) for _, context in self._prompts()),
            ),
            block_size=shape.block_size,
            n_kv_heads=shape.n_kv_heads,
            head_dim=shape.head_dim,
        )
        pool = KVPool(pool_shape, dtype=shape.kv_dtype, device=shape.device)
        self._n_pool_blocks = pool_shape.n_blocks
        ((self._k_cache, self._v_cache),) = pool.layers
        for part in pool.tensor[0]:
            part.copy_(self._normal(*part.shape))
        self.checked = (self._decode(checked), self._prefill(self._prompts()))

    def timed(self, phase: Phase) -> Iterator[Case]:
        if phase == "decode":
            for n_rows in self._n_timed_rows:
                yield self._decode([self._timed_length] * n_rows)
        else:
            n_new = min(self._timed_length, self._limits.max_tokens)
            yield self._prefill([(n_new, self._timed_length)])

    def _prompts(self) -> list[tuple[int, int]]:
        return [pair for pair in _CHECKED_PROMPTS if pair[1] <= self._limits.max_len] or [(2, 2)]

    def _decode(self, contexts: SequenceOf[int]) -> Case:
        """A step's tables are as wide as the longest sequence there may be."""
        tables = self._tables(contexts, n_columns=self._n_blocks(self._limits.max_len))
        rows = PagedRows(block_tables=tables, context_lens=self._ints(contexts))
        return self._case("decode", rows=rows, n_tokens=len(contexts))

    def _prefill(self, prompts: SequenceOf[tuple[int, int]]) -> Case:
        new, contexts = [pair[0] for pair in prompts], [pair[1] for pair in prompts]
        starts = [0, *accumulate(new)]
        n_columns = -(-max(map(self._n_blocks, contexts)) // 16) * 16
        rows = PagedRows(
            block_tables=self._tables(contexts, n_columns=n_columns),
            context_lens=self._ints(contexts),
            query_starts=self._ints(starts),
            max_query_len=max(new),
            host=RowsOnHost(context_lens=contexts, query_starts=starts),
        )
        return self._case("prefill", rows=rows, n_tokens=starts[-1])

    def _case(self, phase: Phase, *, rows: PagedRows, n_tokens: int) -> Case:
        shape = self._shape
        qkv = self._normal(n_tokens, shape.n_heads + 2 * shape.n_kv_heads, shape.head_dim)
        return Case(
            phase=phase,
            q=qkv[:, : shape.n_heads],
            k_cache=self._k_cache,
            v_cache=self._v_cache,
            rows=rows,
            scale=shape.head_dim**-0.5,
        )

    def _tables(self, contexts: SequenceOf[int], *, n_columns: int) -> Tensor:
        """Blocks in no order, none twice; behind a row's last stands a block of somebody else."""
        order = torch.randperm(self._n_pool_blocks, generator=torch.Generator().manual_seed(1))
        tables = torch.full((len(contexts), n_columns), int(order[-1]), dtype=torch.int32)
        start = 0
        for row, context in zip(tables, contexts, strict=True):
            n = self._n_blocks(context)
            row[:n] = order[start : start + n]
            start += n
        return tables.to(self._shape.device)

    def _n_blocks(self, length: int) -> int:
        return -(-length // self._shape.block_size)

    def _normal(self, *size: int) -> Tensor:
        shape = self._shape
        return torch.randn(size, generator=self._rng, dtype=shape.dtype, device=shape.device)

    def _ints(self, values: SequenceOf[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._shape.device)


def difference(found: Tensor, expected: Tensor, *, rows: PagedRows) -> float:
    """Return the greatest difference in units of the tolerance: above 1, or no number, where they
    do not agree. Where rows have one token each, a context of none is passed over."""
    if rows.query_starts is None:
        counts = rows.context_lens > 0
        found, expected = found[counts], expected[counts]
    tolerance = TOLERANCES[expected.dtype]
    allowed = tolerance + tolerance * expected.float().abs()
    return float(((found.float() - expected.float()).abs() / allowed).max())


class Stopwatch(Protocol):
    def seconds_of(self, work: Callable[[], Tensor], *, is_replayed: bool) -> float:
        """Return what ``work`` takes, replayed from a graph or launched. Raises what it raises, and
        where a graph cannot hold it."""

    def check(self) -> None:
        """Raise where the device can compute nothing any more."""


class DeviceStopwatch:
    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def seconds_of(self, work: Callable[[], Tensor], *, is_replayed: bool) -> float:
        work()  # compiles
        if not self._is_cuda:
            started_s = time.perf_counter()
            work()
            return time.perf_counter() - started_s
        run: Callable[[], object] = work
        if is_replayed:
            run, _ = CudaGraphApi().record(work)
        return statistics.median(self._round_s(run) for _ in range(_N_ROUNDS))

    def check(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()

    def _round_s(self, run: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(_N_CALLS):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / _N_CALLS
