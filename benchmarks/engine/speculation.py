"""Speculation by prompt lookup against plain decoding, on the same engine code.

    python -m benchmarks.engine.speculation MODEL_DIR [--rounds 5] [--n-tokens 128]

Rounds alternate the two in one process, so that both see the same machine. ``repetitive`` prompts
are a passage said four times, continued greedily; ``random`` ones are random tokens, continued by
draws at temperature 1. Both must give the same tokens.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any, Final

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import SPECULATION_NAMES, EngineConfig, SpeculationName
from engine_service.protocol import SamplingParams

RESULT: Final = Path(__file__).parents[1] / "results" / "speculation.json"
BATCHES: Final = (1, 8, 32)
WORKLOADS: Final = ("repetitive", "random")
N_PROMPT: Final = 128


def make_requests(
    workload: str, *, n: int, n_tokens: int, vocab_size: int, seed: int
) -> list[EngineRequest]:
    rng = random.Random(seed)
    is_repetitive = workload == "repetitive"
    n_repeats = 4 if is_repetitive else 1
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple(
                [rng.randrange(100, vocab_size) for _ in range(N_PROMPT // n_repeats)] * n_repeats
            ),
            sampling=SamplingParams(
                temperature=0.0 if is_repetitive else 1.0, seed=seed + key, ignore_eos=True
            ),
            max_new_tokens=n_tokens,
        )
        for key in range(n)
    ]


def run(
    backend: NativeBackend, requests: list[EngineRequest]
) -> tuple[float, dict[int, list[int]]]:
    """Return the tokens generated a second once all prompts are computed, and the answers."""
    for request in requests:
        backend.add(request)
    answers: dict[int, list[int]] = {request.key: [] for request in requests}
    while not all(answers.values()):
        for output in backend.step():
            answers[output.key] += output.token_ids
    n_before = sum(map(len, answers.values()))
    started_s = time.perf_counter()
    while backend.has_work():
        for output in backend.step():
            answers[output.key] += output.token_ids
    elapsed_s = time.perf_counter() - started_s
    return (sum(map(len, answers.values())) - n_before) / elapsed_s, answers


def compare(
    backends: dict[SpeculationName, NativeBackend], workload: str, *, n: int, args: Any
) -> dict[str, Any]:
    """Alternate the two; return medians, their ratio and what was accepted."""
    rates: dict[SpeculationName, list[float]] = {name: [] for name in backends}
    before = backends["ngram"].stats()
    n_differences = 0
    for round_ in range(args.rounds + 1):  # the first is a warm-up
        found = {}
        for name in SPECULATION_NAMES if round_ % 2 else reversed(SPECULATION_NAMES):
            requests = make_requests(
                workload,
                n=n,
                n_tokens=args.n_tokens,
                vocab_size=backends[name].info.vocab_size,
                seed=round_ * 1000,
            )
            rate, found[name] = run(backends[name], requests)
            if round_:
                rates[name].append(rate)
        n_differences += sum(found["off"][key] != found["ngram"][key] for key in found["off"])
    after = backends["ngram"].stats()
    ratios = [a / b for a, b in zip(rates["ngram"], rates["off"], strict=True)]
    return {
        "off_tokens_per_s": round(statistics.median(rates["off"]), 1),
        "ngram_tokens_per_s": round(statistics.median(rates["ngram"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "n_drafted": after.n_drafted_tokens - before.n_drafted_tokens,
        "n_accepted": after.n_accepted_tokens - before.n_accepted_tokens,
        "n_different_answers": n_differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    args = parser.parse_args()
    backends: dict[SpeculationName, NativeBackend] = {
        name: NativeBackend(
            EngineConfig(model_dir=args.model_dir, speculation=name, dtype="bfloat16")
        )
        for name in SPECULATION_NAMES
    }
    info = backends["ngram"].info
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "model": info.name,
        "kernels": info.kernels,
        "rounds": args.rounds,
        "cases": {},
    }
    for workload in WORKLOADS:
        for n in args.batches:
            case = compare(backends, workload, n=n, args=args)
            result["cases"][f"{workload}, {n} at once"] = case
            print(f"{workload}, {n} at once: {case}", flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
