"""Our engine on the workloads, driven as its step thread drives it, without sockets or text.

python -m benchmarks.gpu.ours --model-dir DIR --output FILE --workloads NAME...
"""

import argparse
import dataclasses
import time
from typing import Any, Final

from benchmarks.gpu.child import Child, child_options, scale_of
from benchmarks.gpu.workload import TEMPERATURE, Workload, warm_up, workloads
from benchmarks.workload import Timeline, measure_of
from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.protocol import SamplingParams

MAX_SEQUENCES: Final = 512  # as nano-vllm's own default
MAX_MODEL_LEN: Final = 16_384


def load(options: argparse.Namespace) -> NativeBackend:
    """Load the model in bfloat16 with a pool for all that is asked at once."""
    common: dict[str, Any] = {
        "model_dir": options.model_dir,
        "device": options.device,
        "dtype": "bfloat16",
        "max_sequences": MAX_SEQUENCES,
        "max_batched_tokens": 16_384,
        "max_waiting": 1024,
        "max_waiting_per_tenant": None,
        "speculation": "off",
    }
    if options.device == "cuda":
        # All prompts come at once and nobody waits between tokens: chunks as large as may be.
        common |= {"prefill_slowdown": None, "max_model_len": MAX_MODEL_LEN}
    return NativeBackend(EngineConfig(**common))


def run(backend: NativeBackend, workload: Workload) -> dict[str, Any]:
    """Add all jobs, step until all have ended; return the figures.

    Raises:
        RuntimeError: a request failed, or another number of tokens came than was due.
    """
    before = backend.stats()
    timelines = []
    for key, job in enumerate(workload.jobs):
        sampling = SamplingParams(temperature=TEMPERATURE, ignore_eos=True, seed=job.seed)
        timelines.append(Timeline(time.perf_counter()))
        backend.add(
            EngineRequest(
                key=key,
                prompt_token_ids=job.prompt,
                sampling=sampling,
                max_new_tokens=job.n_new,
            )
        )
    while backend.has_work():
        for output in backend.step():
            if output.error is not None:
                raise RuntimeError(f"a request failed: {output.error}")
            if output.token_ids:
                timelines[output.key].saw(len(output.token_ids))
    after = backend.stats()
    measure = measure_of(list(workload.jobs), timelines)
    return {name: round(value, 3) for name, value in dataclasses.asdict(measure).items()} | {
        "n_tokens": workload.n_new_tokens,
        "n_steps": after.n_steps - before.n_steps,
        "n_cached_tokens": after.n_cached_tokens - before.n_cached_tokens,
        "n_preemptions": after.n_preemptions - before.n_preemptions,
        "phases_ms": _phases(after),
    }


def _phases(stats: Any) -> dict[str, float]:
    """Return the medians of the last steps' parts: where a step's time goes on the host."""
    if stats.steps is None:
        return {}
    names = ("schedule_ms", "forward_ms", "sample_ms", "update_ms", "step_ms")
    return {name: round(getattr(stats.steps, name).median, 4) for name in names}


def main() -> None:
    options = child_options(__doc__, runs_model=True)
    child = Child(options.output)
    started_s = time.perf_counter()
    backend = load(options)
    info = backend.info
    child.put(
        "engine",
        {
            "kernels": info.kernels,
            "dtype": info.dtype,
            "n_blocks": info.n_blocks,
            "block_size": info.block_size,
            "load_s": round(time.perf_counter() - started_s, 2),
        },
    )
    scale = scale_of(options)
    warmed = run(backend, warm_up(scale))
    child.put("warm_up", warmed["tokens_per_s"])
    chosen = workloads(scale)
    for name in options.workloads:
        child.put(name, run(backend, chosen[name]))


if __name__ == "__main__":
    main()
