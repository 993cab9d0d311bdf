"""Drives ``transformers`` generation for the benchmark: static batches, padded on the left.

    python -m benchmarks.engine.peers.drive_transformers MODEL_DIR DTYPE

Lines in and out: see benchmarks/engine/peers/lines.py.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig


def generate(model: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer a batch of jobs of the same ``n_new``; its tokens come step by step, all at once."""
    width = max(len(job["prompt"]) for job in jobs)
    padding = [width - len(job["prompt"]) for job in jobs]
    ids = torch.tensor([[0] * n + job["prompt"] for n, job in zip(padding, jobs, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
    arrivals: list[tuple[float, int]] = []

    def note_step(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        arrivals.append((time.perf_counter(), 1))
        return torch.zeros(len(jobs), dtype=torch.bool)

    settings = GenerationConfig(
        max_new_tokens=jobs[0]["n_new"], do_sample=False, eos_token_id=None, pad_token_id=0
    )
    started_s = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=[note_step],
        )
    return [
        {"started_s": started_s, "arrivals": arrivals, "token_ids": row[width:].tolist()}
        for row in found
    ]


def main() -> None:
    model_dir, dtype = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    model.generation_config = GenerationConfig()
    print(json.dumps({"version": transformers.__version__}), flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        jobs, size = turn["jobs"], turn["concurrency"]
        answers = []
        for first in range(0, len(jobs), size):
            answers += generate(model, jobs[first : first + size])
        print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
