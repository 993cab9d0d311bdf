"""The least time that a workload can take on a machine of measured rates. Knows no torch.

A continuously batched schedule in which all sequences run at once: first every prompt is computed,
which gives each sequence its first token, then each step gives one token to every sequence that
still wants one. Prompts take their floating-point operations at the rate of a large matrix product.
A decode step takes the longer of two times: its bytes (all weights once, K and V of every running
sequence's whole context, the logits written and read) at the bandwidth, and its operations at the
matrix rate. Nothing else takes time: no launch, no norm, no sampling, no scheduling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.shape import N_BYTES, Shape
from benchmarks.workload import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a machine was measured to do at best.

    copy_bytes_per_s: of a large copy, bytes read and written. read_bytes_per_s: of a large sum.
    flop_per_s: of a large bfloat16 matrix product.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    flop_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """Return the better of the two, so that the floor is no lower than the machine's."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


def itl_floor_s(shape: Shape, *, rates: Rates) -> float:
    """Return the least time between two tokens of a stream that is alone: reading the weights."""
    return shape.weight_bytes / rates.bytes_per_s


def floor_s(jobs: Sequence[Job], *, shape: Shape, rates: Rates, n_shared: int = 0) -> float:
    """Return the least time of a workload.

    n_shared: ids that all prompts begin with, which need computing only once.
    """
    flop = sum(_prefill_flop(len(job.prompt), shape=shape) for job in jobs)
    flop -= (len(jobs) - 1) * _prefill_flop(n_shared, shape=shape)
    flop += 2.0 * len(jobs) * shape.n_head_weights  # of the last token of each alone
    return flop / rates.flop_per_s + _decode_s(jobs, shape=shape, rates=rates)


def shared_prefix(jobs: Sequence[Job]) -> int:
    """Return how many ids all prompts begin with; 0 where there is one job."""
    if len(jobs) < 2:
        return 0
    prompts = [job.prompt for job in jobs]
    lowest, highest = min(prompts), max(prompts)  # in order, so that these differ most
    n_common = next(
        (i for i, (a, b) in enumerate(zip(lowest, highest, strict=False)) if a != b), len(lowest)
    )
    return min(n_common, *(len(prompt) - 1 for prompt in prompts))


def _prefill_flop(n_tokens: int, *, shape: Shape) -> float:
    """Two for each of the layers' weights and token; causal attention has half of the pairs, each
    of which is multiplied twice."""
    products = 2.0 * n_tokens * shape.n_layers * shape.n_layer_weights
    pairs = n_tokens * (n_tokens + 1) / 2
    return products + 4.0 * pairs * shape.n_layers * shape.n_heads * shape.head_dim


def _decode_s(jobs: Sequence[Job], *, shape: Shape, rates: Rates) -> float:
    n_weights = shape.n_layers * shape.n_layer_weights + shape.n_head_weights
    ends = sorted(jobs, key=lambda job: job.n_new)
    n_running = len(ends)
    context = sum(len(job.prompt) for job in ends)  # of all that run, their newest token included
    finished = iter(ends)
    next_end = next(finished, None)
    total_s = 0.0
    for n_known in range(1, max(job.n_new for job in jobs)):
        while next_end is not None and next_end.n_new <= n_known:
            context -= len(next_end.prompt) + n_known - 1
            n_running -= 1
            next_end = next(finished, None)
        context += n_running
        n_bytes = shape.weight_bytes + context * shape.kv_token_bytes
        n_bytes += 2 * N_BYTES * n_running * shape.vocab_size
        flop = 2.0 * n_running * n_weights
        flop += 4.0 * context * shape.n_layers * shape.n_heads * shape.head_dim
        total_s += max(n_bytes / rates.bytes_per_s, flop / rates.flop_per_s)
    return total_s
