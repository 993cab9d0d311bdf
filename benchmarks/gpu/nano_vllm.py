"""nano-vllm on the workloads, driven by its own step loop; its package is brought along, see
``make gpu-peers``.

    python -m benchmarks.gpu.nano_vllm --model-dir DIR --output FILE --workloads NAME...

It runs as its own bench.py runs it, with CUDA graphs, a context of 4,096 tokens and its defaults;
what it decodes to text at the end of ``generate`` is left out, as it is of ours.
"""

import importlib.metadata
import statistics
import sys
import time
from typing import Any, Final

from benchmarks.gpu import flash_attn_shim
from benchmarks.gpu.child import Child, child_options, scale_of
from benchmarks.gpu.workload import TEMPERATURE, Workload, warm_up, workloads

MAX_MODEL_LEN: Final = 4096


def run(engine: Any, workload: Workload, *, sampling: Any) -> dict[str, Any]:
    """Add all jobs, step until all have ended; return the figures.

    sampling: its class of parameters. ITL: what a step that decodes takes.

    Raises:
        RuntimeError: another number of tokens came than was due.
    """
    started_s = time.perf_counter()
    for job in workload.jobs:
        engine.add_request(
            list(job.prompt),
            sampling(temperature=TEMPERATURE, ignore_eos=True, max_tokens=job.n_new),
        )
    n_tokens, steps_s = 0, []
    while not engine.is_finished():
        stepped_s = time.perf_counter()
        outputs, n_step = engine.step()
        if n_step < 0:
            steps_s.append(time.perf_counter() - stepped_s)
        n_tokens += sum(len(token_ids) for _, token_ids in outputs)
    elapsed_s = time.perf_counter() - started_s
    if n_tokens != workload.n_new_tokens:
        raise RuntimeError(f"{n_tokens} tokens came, {workload.n_new_tokens} were due")
    steps_s.sort()
    return {
        "tokens_per_s": round(n_tokens / elapsed_s, 3),
        "itl_ms": round(statistics.median(steps_s) * 1e3, 3),
        "itl_p99_ms": round(steps_s[int(len(steps_s) * 0.99)] * 1e3, 3),
        "n_tokens": n_tokens,
        "n_decode_steps": len(steps_s),
    }


def main() -> None:
    options = child_options(__doc__, runs_model=True, brings_peers=True)
    child = Child(options.output)
    sys.path.insert(0, str(options.peers / "nano-vllm"))
    child.put("attention", flash_attn_shim.install())
    from nanovllm import LLM, SamplingParams

    started_s = time.perf_counter()
    engine = LLM(str(options.model_dir), enforce_eager=False, max_model_len=MAX_MODEL_LEN)
    child.put(
        "engine",
        {"version": _version(), "load_s": round(time.perf_counter() - started_s, 2)},
    )
    scale = scale_of(options)
    warmed = run(engine, warm_up(scale), sampling=SamplingParams)
    child.put("warm_up", warmed["tokens_per_s"])
    chosen = workloads(scale)
    for name in options.workloads:
        child.put(name, run(engine, chosen[name], sampling=SamplingParams))


def _version() -> str:
    try:
        return importlib.metadata.version("nano-vllm")
    except importlib.metadata.PackageNotFoundError:
        return "from a folder of its sources"


if __name__ == "__main__":
    main()
