"""Steps that are computed before the first request: to see what memory steps take, and to have
their kernels compiled."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import accumulate

import torch

from engine_service.config import EngineConfig
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.device_sampler import DeviceSampler
from engine_service.runner.step_packing import PackedStep, joined


@torch.inference_mode()
def largest_step(model: DeviceModel, sampler: DeviceSampler, *, config: EngineConfig) -> int:
    """Compute the largest step there can be; return how many bytes that took at most."""
    _largest(model, sampler, config=config)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _largest(model, sampler, config=config)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@torch.inference_mode()
def warm_up(model: DeviceModel, sampler: DeviceSampler, *, config: EngineConfig) -> None:
    """Have the kernels compiled that steps will need: no request waits for that.

    Kernels are compiled for classes of how many tokens a row, a step and the block tables are long,
    between whose bounds lies a power of two; attention also for whether there are so many programs
    that no context needs to be split, of which one long row beside many short ones has the most.
    """
    _largest(model, sampler, config=config)
    n_tokens = config.max_batched_tokens
    for length in _lengths(min(model.max_len, n_tokens)):
        most_short = min(config.max_sequences - 1, (n_tokens - length) // 2)
        for n_short in sorted({0, most_short}):
            lengths = [2] * n_short + [length]
            _compute(model, sampler, lengths=lengths, n_logits=len(lengths))
    for n_rows in _lengths(config.max_sequences):
        _compute(model, sampler, lengths=[1] * n_rows, n_logits=n_rows)
    for length in _lengths(model.max_len):
        _compute(model, sampler, lengths=[1], n_logits=1, max_context_len=length)


def _largest(model: DeviceModel, sampler: DeviceSampler, *, config: EngineConfig) -> None:
    max_len, n_tokens = model.max_len, config.max_batched_tokens
    lengths = [max_len] * (n_tokens // max_len)
    if n_tokens % max_len:
        lengths.append(n_tokens % max_len)
    _compute(model, sampler, lengths=lengths, n_logits=config.max_sequences)


def _lengths(longest: int) -> Iterator[int]:
    """Yield numbers of tokens: one more than each power of two."""
    length = 2
    while length <= longest:
        yield length
        length = 2 * length - 1


def _compute(
    model: DeviceModel,
    sampler: DeviceSampler,
    *,
    lengths: SequenceOf[int],
    n_logits: int,
    max_context_len: int | None = None,
) -> None:
    wide = max_context_len or model.max_len
    step = trial_step(lengths, n_logits=n_logits, max_context_len=wide)
    numbers = torch.frombuffer(step.numbers, dtype=torch.int32).to(model.device)
    sampler.draw_trial(model.logits(model.forward(step, numbers=numbers)))


def trial_step(lengths: SequenceOf[int], *, n_logits: int, max_context_len: int) -> PackedStep:
    """Return prompts of these lengths, single tokens first, that store nothing and read the first
    block; kernels are told of contexts as long as ``max_context_len``."""
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
        max_context_len=max_context_len,
        is_decode=False,
        draws_plainly=False,
        numbers=joined(sections),
    )
