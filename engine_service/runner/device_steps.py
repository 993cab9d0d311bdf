"""Computes packed steps on a device: what all ranks of a tensor-parallel group do alike."""

from collections.abc import Sequence as SequenceOf
from typing import Final, Protocol

import torch
from torch import Tensor

from engine_service.runner.collectives import Collectives
from engine_service.runner.decode_graphs import DecodeGraphs
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.step_packing import PackedStep

# A step's numbers on the host are written again so many steps later: two may be in flight.
_N_BUFFERS: Final = 3


class Steps(Protocol):
    """Queues on the device, in the order of the calls, and waits for nothing."""

    def compute(self, step: PackedStep) -> Tensor:
        """Return the logits of all rows of a step that ``is_decode``, padding included, with what
        was drawn from them plainly in ``last_draws``; else what ``DeviceModel.forward`` does.
        Either stands until the next call."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the content of blocks; each pair is from and to, none both."""


class DeviceSteps:
    """max_numbers: most integers of a packed step. collectives: of the group that the model is a
    part of; None for a whole one."""

    def __init__(
        self,
        model: DeviceModel,
        *,
        graphs: DecodeGraphs | None,
        max_numbers: int,
        collectives: Collectives | None = None,
    ) -> None:
        self._model = model
        self._graphs = graphs
        self._collectives = collectives
        is_cuda = model.device.type == "cuda"
        self._hosts = [
            torch.empty(max_numbers, dtype=torch.int32, pin_memory=is_cuda)
            for _ in range(_N_BUFFERS)
        ]
        self._turn = 0

    @torch.inference_mode()
    def compute(self, step: PackedStep) -> Tensor:
        host = self._on_host(step)
        if self._collectives is not None and step.takes_draws:
            self._collectives.share(self._model.last_draws)
        is_recorded = (
            self._graphs is not None and step.is_decode and step.n_rows in self._graphs.sizes
        )
        if is_recorded and not step.n_updates:
            assert self._graphs is not None
            return self._graphs.run(step.n_rows, numbers=host)
        numbers = host.to(self._model.device, non_blocking=True)
        self._model.update_tables(step, numbers=numbers)
        if not step.is_decode:
            return self._model.forward(step, numbers=numbers)
        if is_recorded:
            assert self._graphs is not None
            return self._graphs.run(step.n_rows, numbers=numbers)
        return self._model.decode_and_draw(step.n_rows, numbers=numbers)

    @torch.inference_mode()
    def logits(self, normed: Tensor) -> Tensor:
        """Return the logits of rank 0's normed states, (n, vocab) of (n, hidden), as all ranks of
        the group do at once; of none nothing is exchanged."""
        assert self._collectives is not None
        normed = normed.contiguous()
        if len(normed):
            self._collectives.share(normed)
        return self._model.all_logits(normed)

    def join_logits(self, n_rows: int) -> None:
        """Do another rank's part of that."""
        model = self._model
        self.logits(torch.empty(n_rows, model.hidden_size, dtype=model.dtype, device=model.device))

    @torch.inference_mode()
    def clear(self, blocks: SequenceOf[int]) -> None:
        assert self._model.pool is not None
        self._model.pool.clear(blocks)

    @torch.inference_mode()
    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        assert self._model.pool is not None
        self._model.pool.copy(pairs)

    def _on_host(self, step: PackedStep) -> Tensor:
        host = self._hosts[self._turn]
        self._turn = (self._turn + 1) % _N_BUFFERS
        n = len(step.numbers)
        host[:n] = torch.frombuffer(step.numbers, dtype=torch.int32)
        return host[:n]
