"""Draws tokens on the device, those apart that only the processor can draw."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.kernels.device import AdjustmentTensors, DeviceKernels, SamplingTensors
from engine_service.runner.device_sampling import build_draws
from engine_service.runner.sample_row import SampleRow
from engine_service.scheduling.token_mask import n_mask_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """token_ids: int32 (n_rows,) on the device, None where there is no row. careful: rows that the
    processor has to draw, from ``logits``, float32 on the device."""

    token_ids: Tensor | None = None
    careful: tuple[int, ...] = ()
    logits: Tensor | None = None


class DeviceSampler:
    def __init__(self, kernels: DeviceKernels, *, device: torch.device) -> None:
        self._kernels = kernels
        self._device = device

    def draw(self, logits: Tensor, *, rows: SequenceOf[SampleRow]) -> Drawn:
        """Draw from (n_rows, vocab) logits, which are changed, without waiting for the device."""
        draws = build_draws(rows, vocab_size=logits.shape[1], device=self._device)
        kept = logits[list(draws.careful)].float() if draws.careful else None
        if draws.adjustments is not None:
            self._kernels.adjust(logits, adjustments=draws.adjustments)
        token_ids = self._kernels.sample(logits, sampling=draws.sampling)
        return Drawn(token_ids=token_ids, careful=draws.careful, logits=kept)

    def draw_trial(self, logits: Tensor) -> None:
        """Adjust and draw in every way there is, also in that which takes the most memory."""
        n = len(logits)
        self._kernels.adjust(logits, adjustments=self._trial_adjustments(logits))
        for filtered, drawn in ((False, False), (False, True), (True, True)):
            sampling = SamplingTensors(
                temperature=torch.ones(n, device=self._device),
                top_k=torch.full((n,), 40, dtype=torch.int32, device=self._device),
                top_p=torch.full((n,), 0.9, device=self._device),
                min_p=torch.full((n,), 0.1, device=self._device),
                uniform=torch.rand(n, dtype=torch.float64, device=self._device),
                filtered=filtered,
                drawn=drawn,
            )
            self._kernels.sample(logits, sampling=sampling)

    def _trial_adjustments(self, logits: Tensor) -> AdjustmentTensors:
        """Return one of each kind, for the first row."""
        n, vocab_size = logits.shape

        def ints() -> Tensor:
            return torch.zeros(1, dtype=torch.int32, device=self._device)

        return AdjustmentTensors(
            penalized_rows=ints(),
            penalized_ids=ints(),
            counts=torch.zeros(1, device=self._device),
            repetition=torch.ones(n, device=self._device),
            frequency=torch.zeros(n, device=self._device),
            presence=torch.zeros(n, device=self._device),
            biased_rows=ints(),
            biased_ids=ints(),
            bias=torch.zeros(1, device=self._device),
            forbidden_rows=ints(),
            forbidden_ids=ints(),
            masked_rows=ints(),
            masks=torch.full(
                (1, n_mask_bytes(vocab_size)), 255, dtype=torch.uint8, device=self._device
            ),
        )
