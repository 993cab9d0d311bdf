"""Draws tokens on the device, those apart that only the processor can draw."""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from engine_service.kernels.device import DeviceKernels, SamplingTensors
from engine_service.runner.sample_row import SampleRow


class DeviceSampler:
    """max_rows: most draws of a step."""

    def __init__(self, kernels: DeviceKernels, *, device: torch.device, max_rows: int) -> None:
        self._kernels = kernels
        self._device = device

    def is_careful(self, row: SampleRow) -> bool:
        """Return whether the processor has to make this draw."""
        return row.state is not None or row.params.logprobs is not None

    def draw(self, logits: Tensor, *, rows: SequenceOf[SampleRow]) -> Tensor:
        """Return int32 (n_rows,) on the device, without waiting for it."""
        params = [row.params for row in rows]
        floats = torch.tensor(
            [
                [0.0 if row.is_greedy else row.params.temperature for row in rows],
                [each.top_p for each in params],
                [each.min_p for each in params],
            ]
        ).to(self._device, non_blocking=True)
        uniform = torch.tensor([row.uniform for row in rows], dtype=torch.float64)
        sampling = SamplingTensors(
            temperature=floats[0],
            top_k=torch.tensor([each.top_k for each in params], dtype=torch.int32).to(self._device),
            top_p=floats[1],
            min_p=floats[2],
            uniform=uniform.to(self._device, non_blocking=True),
            filtered=any(row.filter != "none" for row in rows),
            drawn=any(not row.is_greedy for row in rows),
        )
        return self._kernels.sample(logits, sampling=sampling)

    def draw_trial(self, logits: Tensor) -> None:
        """Draw in the way that takes the most memory."""
        n = len(logits)
        sampling = SamplingTensors(
            temperature=torch.ones(n, device=self._device),
            top_k=torch.full((n,), 40, dtype=torch.int32, device=self._device),
            top_p=torch.full((n,), 0.9, device=self._device),
            min_p=torch.full((n,), 0.1, device=self._device),
            uniform=torch.rand(n, dtype=torch.float64, device=self._device),
            filtered=True,
            drawn=True,
        )
        self._kernels.sample(logits, sampling=sampling)
