"""Drives vLLM's asynchronous engine for the benchmark. Runs in vLLM's own environment, knows
nothing of ours.

    python drive_vllm.py MODEL_DIR DTYPE N_SEQUENCES MAX_MODEL_LEN

It answers each line of stdin, a list of jobs and how many may be under way, by one line of stdout:
see benchmarks/engine/peers/lines.py.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any, TextIO


async def answer(engine: Any, job: dict[str, Any], *, request_id: str) -> dict[str, Any]:
    """Generate one job's tokens; times are of time.perf_counter."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0,
        max_tokens=job["n_new"],
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    started_s = time.perf_counter()
    arrivals, token_ids = [], []
    prompt = {"prompt_token_ids": job["prompt"]}
    async for output in engine.generate(prompt, params, request_id):
        new = output.outputs[0].token_ids
        arrivals.append((time.perf_counter(), len(new)))
        token_ids += new
    return {"started_s": started_s, "arrivals": arrivals, "token_ids": token_ids}


async def run(engine: Any, turn: dict[str, Any], *, name: str) -> list[dict[str, Any]]:
    pending = list(enumerate(turn["jobs"]))[::-1]
    answers: list[dict[str, Any]] = [{} for _ in pending]

    async def worker() -> None:
        while pending:
            index, job = pending.pop()
            answers[index] = await answer(engine, job, request_id=f"{name}-{index}")

    await asyncio.gather(*(worker() for _ in range(turn["concurrency"])))
    return answers


async def main(replies: TextIO) -> None:
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    model_dir, dtype, n_sequences, max_model_len = sys.argv[1:]
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model_dir,
            dtype=dtype,
            max_num_seqs=int(n_sequences),
            max_model_len=int(max_model_len),
            enable_log_requests=False,
        )
    )
    print(json.dumps({"version": vllm.__version__}), file=replies, flush=True)
    for number in range(10**9):
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            break
        answers = await run(engine, json.loads(line), name=str(number))
        print(json.dumps({"answers": answers}), file=replies, flush=True)
    engine.shutdown()


if __name__ == "__main__":
    # vLLM prints to stdout as it likes: keep it for the answers alone.
    own_stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(main(own_stdout))
