"""CUDA graphs of the steps that only decode: the launches of a step, recorded once for each of some
batch sizes and repeated with one call.

A batch runs in the graph of the next larger size; what pads it reads and writes nothing. Sizes lie
so close that this costs little: the work that padding adds is that of dense layers, whose time
hardly grows from one size to the next.
"""

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine_service.runner.step_packing import decode_length

_INPUTS_PER_ROW = 6


class GraphApi(Protocol):
    """What is used of torch's: to record, and what was recorded."""

    def record(self, compute: Callable[[], Tensor]) -> "tuple[Callable[[], None], Tensor]":
        """Return what repeats ``compute``, and the tensor in which its result then stands."""

    def forget(self) -> None:
        """Keep nothing for what was recorded: it is gone."""


class CudaGraphApi:
    """All graphs share one memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and makes handles, outside of the graph
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        self._pool = self._pool or graph.pool()
        return graph.replay, result

    def forget(self) -> None:
        self._pool = None
        # Those of the streams that recorded would keep the graphs' memory.
        torch._C._cuda_clearCublasWorkspaces()


class DecodeGraphs:
    """decode: computes so many rows from the first numbers of the array that it is given, as
    ``DeviceModel.decode_and_draw``. Recorded when made, the largest first, so that smaller ones
    find their memory.

    A graph knows addresses: all are to be dropped before what they read and write goes, and
    recorded anew once it is there again, before one is run.
    """

    def __init__(
        self,
        decode: Callable[..., Tensor],
        *,
        sizes: SequenceOf[int],
        device: torch.device,
        api: GraphApi,
    ) -> None:
        self._decode = decode
        self._api = api
        self.sizes = sorted(sizes)
        largest = self.sizes[-1] if self.sizes else 0
        self._numbers = torch.zeros(decode_length(largest), dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[Callable[[], None], Tensor]] = {}
        while self.record_next():
            pass

    def record_next(self) -> bool:
        """Record the largest that is lacking; return whether one was."""
        lacking = [size for size in self.sizes if size not in self._graphs]
        if not lacking:
            return False
        size = lacking[-1]
        self._pad_all(size)
        self._graphs[size] = self._api.record(partial(self._decode, size, numbers=self._numbers))
        return True

    def drop(self) -> None:
        """Forget all, which gives their memory back to torch."""
        self._graphs.clear()
        self._api.forget()

    def size_for(self, n_rows: int) -> int | None:
        """Return the size of the graph that takes so many rows; None where none does."""
        place = bisect_left(self.sizes, n_rows)
        return self.sizes[place] if place < len(self.sizes) else None

    def run(self, size: int, *, numbers: Tensor) -> Tensor:
        """Return the logits of a step packed to ``size`` rows; they stand until the next run.

        numbers: the step's, on the host or the device.
        """
        replay, logits = self._graphs[size]
        n = decode_length(size)
        self._numbers[:n].copy_(numbers[:n], non_blocking=True)
        replay()
        return logits

    def _pad_all(self, size: int) -> None:
        """Have rows that read and write nothing while the graph is recorded."""
        self._numbers.zero_()
        inputs = self._numbers[: _INPUTS_PER_ROW * size].view(_INPUTS_PER_ROW, size)
        inputs[2:4] = -1


def graph_sizes(max_rows: int) -> list[int]:
    """Return 1, 2, 4, 8, then steps of 8 up to 64, of 16 up to 256 and of 32 beyond, and the most
    rows there are."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 1, 32)]
    return sorted({size for size in sizes if size <= max_rows} | {max_rows})
