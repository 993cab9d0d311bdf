"""Continuous batching of ``transformers`` on the workloads.

    python -m benchmarks.gpu.drive_transformers --model-dir DIR --output FILE --limit-s SECONDS \\
        --workloads NAME...

Its defaults, over torch's attention or a flash-attn that it finds; answers are drawn as the other
engines draw them. A workload that does not end in the time is left out, and so are those behind it;
a version without continuous batching leaves out all.
"""

import os
import sys
import time
from typing import Any, Final

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.gpu.child import Child, child_options, scale_of
from benchmarks.gpu.workload import TEMPERATURE, Workload, equal, workloads

NO_TOKEN: Final = -1
MANAGER: Final = "continuous_batching_context_manager"
# Of a cache on a processor, which would else take nearly all of its memory.
CPU_LIMITS: Final = {"num_blocks": 64, "max_batch_tokens": 256}


class OutOfTimeError(Exception):
    """A workload did not end in time; the manager is still at it."""


def run(manager: Any, workload: Workload, *, deadline_s: float) -> dict[str, Any]:
    """Give all jobs to a started manager and wait until all have ended; return the figures.

    deadline_s: by ``time.monotonic``.

    Raises:
        RuntimeError: a request failed, or another number of tokens came than was due.
        OutOfTimeError: the deadline passed.
    """
    started_s = time.perf_counter()
    for job in workload.jobs:
        manager.add_request(list(job.prompt), max_new_tokens=job.n_new, eos_token_id=NO_TOKEN)
    n_tokens = n_finished = 0
    while n_finished < len(workload.jobs):
        if time.monotonic() > deadline_s:
            raise OutOfTimeError(f"{n_finished} of {len(workload.jobs)} requests ended in time")
        result = manager.get_result(timeout=1.0)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("the thread that generates has ended")
            continue
        if result.error is not None:
            raise RuntimeError(f"a request failed: {result.error}")
        if result.is_finished():
            n_finished += 1
            n_tokens += len(result.generated_tokens)
    elapsed_s = time.perf_counter() - started_s
    if n_tokens != workload.n_new_tokens:
        raise RuntimeError(f"{n_tokens} tokens came, {workload.n_new_tokens} were due")
    return {"tokens_per_s": round(n_tokens / elapsed_s, 3), "n_tokens": n_tokens}


def run_all(manager: Any, chosen: list[Workload], *, deadline_s: float, child: Child) -> bool:
    """Put the figures of each, or why it was left out; return whether all have ended."""
    reason: str | None = None
    for workload in chosen:
        if reason is not None:
            child.put(workload.name, {"left_out": reason})
            continue
        try:
            child.put(workload.name, run(manager, workload, deadline_s=deadline_s))
        except OutOfTimeError as error:
            child.put(workload.name, {"left_out": str(error)})
            reason = f"the time went into {workload.name}"
    return reason is None


def lacking(model: Any) -> str | None:
    """Return what this version of transformers has not; None where it can be measured."""
    if hasattr(model, MANAGER):
        return None
    return f"transformers {transformers.__version__} has no continuous batching ({MANAGER})"


def manager_options(device: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "generation_config": GenerationConfig(
            do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, eos_token_id=NO_TOKEN
        )
    }
    if device == "cpu":
        config = transformers.generation.ContinuousBatchingConfig(**CPU_LIMITS)
        options["continuous_batching_config"] = config
    return options


def main() -> None:
    options = child_options(__doc__, runs_model=True, is_bounded=True)
    deadline_s = time.monotonic() + options.limit_s
    child = Child(options.output)
    model = AutoModelForCausalLM.from_pretrained(
        options.model_dir, dtype=torch.bfloat16, local_files_only=True, attn_implementation="sdpa"
    ).to(options.device)
    child.put("engine", {"version": transformers.__version__})
    if reason := lacking(model):
        child.put("left_out", reason)
        return
    scale = scale_of(options)
    known = workloads(scale)
    warm_up = equal("warm_up", n=64, n_prompt=64, n_new=16, scale=scale, seed=98)
    chosen = [warm_up, *(known[name] for name in options.workloads)]
    with getattr(model, MANAGER)(**manager_options(options.device)) as manager:
        if not run_all(manager, chosen, deadline_s=deadline_s, child=child):
            sys.stdout.flush()
            os._exit(0)  # the manager would go on with what nobody waits for


if __name__ == "__main__":
    main()
