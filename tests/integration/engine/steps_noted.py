"""Lays out random steps of engines for a GPU that is not there, and prints by engine which variants
of kernels they would launch that an engine has not compiled by then, as JSON.

    TRITON_INTERPRET=0 python -m tests.integration.engine.steps_noted N_STEPS GPU ENGINE...
"""

import json
import random
import sys
from collections.abc import Iterator

import torch

from benchmarks.gpu.ahead import ENGINES, Engine
from benchmarks.gpu.compiler import GPUS, noting
from engine_service.kernels.triton.gpu import Gpu
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.runner.device_sampler import DeviceSampler
from engine_service.runner.device_trials import trial_step
from engine_service.runner.rehearsal import META, rehearse, shapes_only
from engine_service.runner.step_packing import PackedStep


def random_steps(engine: Engine, *, n_steps: int) -> Iterator[PackedStep]:
    """Yield steps of prompts' parts and single tokens, as far as a step may go."""
    rng = random.Random(3)
    config = engine.config
    for _ in range(n_steps):
        left = rng.choice((4, 20, 100, 600, config.max_batched_tokens))
        longest = rng.choice((1, 2, 8, 60, 400, config.max_batched_tokens))
        lengths = []
        while left and len(lengths) < config.max_sequences:
            lengths.append(min(left, rng.randint(1, longest)))
            left -= lengths[-1]
        yield trial_step(
            sorted(lengths),
            n_logits=rng.randint(1, len(lengths)),
            max_context_len=rng.randint(max(lengths), max(lengths) + 3000),
        )


def unrehearsed(engine: Engine, gpu: Gpu, *, n_steps: int) -> tuple[int, list[str]]:
    """Return how many variants there are, and the names of those that come as a surprise."""
    plan, kernels = engine.plan(gpu), TritonKernels()
    with noting(gpu) as rehearsed:
        rehearse(plan, kernels=kernels)
    with noting(gpu) as launched, torch.inference_mode():
        model, sampler = shapes_only(plan, kernels=kernels), DeviceSampler(kernels, device=META)
        for step in random_steps(engine, n_steps=n_steps):
            numbers = torch.empty(len(step.numbers), dtype=torch.int32, device=META)
            sampler.draw_trial(model.logits(model.forward(step, numbers=numbers)))
    return len(rehearsed), sorted(name for name, _ in launched - rehearsed)


def main() -> None:
    n_steps, gpu = int(sys.argv[1]), GPUS[sys.argv[2]]
    found = {}
    for name in sys.argv[3:]:
        n_rehearsed, surprises = unrehearsed(ENGINES[name], gpu, n_steps=n_steps)
        found[name] = {"n_rehearsed": n_rehearsed, "surprises": surprises}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
