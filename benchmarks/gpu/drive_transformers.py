"""Continuous batching of ``transformers`` on the workloads.

    python -m benchmarks.gpu.drive_transformers --model-dir DIR --output FILE --workloads NAME...

Its defaults, over torch's attention; answers are drawn as the other engines draw them.
"""

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.gpu.child import Child, child_options, scale_of
from benchmarks.gpu.workload import TEMPERATURE, Workload, equal, workloads

NO_TOKEN = -1


def run(manager: Any, workload: Workload) -> dict[str, Any]:
    """Give all jobs to a started manager and wait until all have ended; return the figures.

    Raises:
        RuntimeError: a request failed, or another number of tokens came than was due.
    """
    started_s = time.perf_counter()
    for job in workload.jobs:
        manager.add_request(list(job.prompt), max_new_tokens=job.n_new, eos_token_id=NO_TOKEN)
    n_tokens = n_finished = 0
    while n_finished < len(workload.jobs):
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


def main() -> None:
    options = child_options(__doc__, runs_model=True)
    child = Child(options.output)
    model = AutoModelForCausalLM.from_pretrained(
        options.model_dir, dtype=torch.bfloat16, local_files_only=True, attn_implementation="sdpa"
    ).to(options.device)
    child.put("engine", {"version": transformers.__version__})
    config = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, eos_token_id=NO_TOKEN
    )
    scale = scale_of(options)
    chosen = workloads(scale)
    warm_up = equal("warm-up", n=64, n_prompt=64, n_new=16, scale=scale, seed=98)
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        child.put("warm_up", run(manager, warm_up)["tokens_per_s"])
        for name in options.workloads:
            child.put(name, run(manager, chosen[name]))


if __name__ == "__main__":
    main()
