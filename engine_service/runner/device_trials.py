"""Steps that are computed before the first request: to see what memory steps take, and to have
their kernels compiled."""

from collections.abc import Sequence as SequenceOf
from itertools import accumulate, product
from typing import Final

import torch

from engine_service.config import EngineConfig
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.device_sampler import DeviceSampler
from engine_service.runner.step_packing import PackedStep, joined

# New tokens of a row, and rows, between which attention's tiles and splits differ.
_WARM_LENGTHS: Final = (2, 9, 17, 33, 65, 129)
_WARM_ROWS: Final = (1, 64)


@torch.inference_mode()
def largest_step(model: DeviceModel, sampler: DeviceSampler, *, config: EngineConfig) -> int:
    """Compute the largest step there can be; return how many bytes that took at most."""
    max_len, n_tokens = model.max_len, config.max_batched_tokens
    lengths = [max_len] * (n_tokens // max_len)
    if n_tokens % max_len:
        lengths.append(n_tokens % max_len)
    _compute(model, sampler, lengths=lengths, n_logits=config.max_sequences)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _compute(model, sampler, lengths=lengths, n_logits=config.max_sequences)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@torch.inference_mode()
def warm_up(model: DeviceModel, sampler: DeviceSampler, *, max_batched_tokens: int) -> None:
    """Have the kernels compiled that steps will need: no request waits for that."""
    for length, n_rows in product(_WARM_LENGTHS, _WARM_ROWS):
        if n_rows * (length + 1) <= max_batched_tokens and length <= model.max_len:
            _compute(model, sampler, lengths=[1] * n_rows + [length] * n_rows, n_logits=n_rows)


def _compute(
    model: DeviceModel, sampler: DeviceSampler, *, lengths: SequenceOf[int], n_logits: int
) -> None:
    step = _trial_step(lengths, n_logits=n_logits)
    numbers = torch.frombuffer(step.numbers, dtype=torch.int32).to(model.device)
    sampler.draw_trial(model.logits(model.forward(step, numbers=numbers)))


def _trial_step(lengths: SequenceOf[int], *, n_logits: int) -> PackedStep:
    """Return prompts of these lengths, single tokens first, that store nothing and read the first
    block."""
    n_tokens, n_rows = sum(lengths), len(lengths)
    sections: list[SequenceOf[int]] = [
        [0] * n_tokens,
        [place for length in lengths for place in range(length)],
        [-1] * n_tokens,
        [-1] * n_rows,
        [0] * n_rows,
        lengths,
        [0, *accumulate(lengths)],
        [place % n_tokens for place in range(n_logits)],
    ]
    return PackedStep(
        n_tokens=n_tokens,
        n_rows=n_rows,
        n_single=sum(length == 1 for length in lengths),
        n_logits=n_logits,
        n_updates=0,
        max_query_len=max(lengths),
        max_context_len=max(lengths),
        is_decode=False,
        draws_plainly=False,
        numbers=joined(sections),
    )
