"""Speculation by prompt lookup against plain decoding, on the same engine code.

    python -m benchmarks.engine.speculation MODEL_DIR [--rounds 5] [--n-tokens 128]

Rounds alternate the two in one process, so that both see the same machine. ``repetitive`` prompts
are a passage said four times, continued greedily; ``random`` ones are random tokens, continued by
draws at temperature 1. Both must give the same tokens.

A closed loop: so many requests run at any time, and each that ends is followed by the next. Their
answers are of unequal lengths, so that they do not all end in one step. Tokens a second are those
of all answers by the time from the first request to the last answer, prompts included.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, SpeculationName
from engine_service.protocol import SamplingParams

_NAMES: tuple[SpeculationName, ...] = ("off", "ngram")
RESULT: Final = Path(__file__).parents[1] / "results" / "speculation.json"
BATCHES: Final = (1, 8, 32)
WORKLOADS: Final = ("repetitive", "random")
N_PROMPT: Final = 128
REQUESTS_PER_PLACE: Final = 6
MIN_REQUESTS: Final = 16


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
            max_new_tokens=rng.randint(n_tokens // 2, n_tokens * 3 // 2),
        )
        for key in range(n)
    ]


@dataclass(frozen=True, slots=True)
class Run:
    """Of all requests, and of the median one from its first token to its last."""

    tokens_per_s: float
    stream_tokens_per_s: float
    answers: dict[int, list[int]]


def run(backend: NativeBackend, requests: list[EngineRequest], *, n_at_once: int) -> Run:
    waiting = iter(requests)
    for request in itertools.islice(waiting, n_at_once):
        backend.add(request)
    answers: dict[int, list[int]] = {request.key: [] for request in requests}
    first_s: dict[int, float] = {}
    rates = []
    started_s = time.perf_counter()
    while backend.has_work():
        outputs = backend.step()
        now_s = time.perf_counter()
        for output in outputs:
            answers[output.key] += output.token_ids
            first_s.setdefault(output.key, now_s)
            if output.finish_reason is not None:
                rates.append((len(answers[output.key]) - 1) / (now_s - first_s[output.key]))
                for request in itertools.islice(waiting, 1):
                    backend.add(request)
    n_tokens = sum(map(len, answers.values()))
    return Run(
        tokens_per_s=n_tokens / (time.perf_counter() - started_s),
        stream_tokens_per_s=statistics.median(rates),
        answers=answers,
    )


def compare(
    backends: dict[str, NativeBackend], workload: str, *, n: int, n_requests: int, args: Any
) -> dict[str, Any]:
    """Alternate the two, the first of which guesses nothing, ``n`` of ``n_requests`` at once;
    return medians, their ratio and what was accepted."""
    plain, guessing = backends
    runs: dict[str, list[Run]] = {name: [] for name in backends}
    before = backends[guessing].stats()
    n_differences = 0
    for round_ in range(args.rounds + 1):  # the first is a warm-up
        found: dict[str, Run] = {}
        for name in (plain, guessing) if round_ % 2 else (guessing, plain):
            requests = make_requests(
                workload,
                n=n_requests,
                n_tokens=args.n_tokens,
                vocab_size=backends[name].info.vocab_size,
                seed=round_ * 1000,
            )
            found[name] = run(backends[name], requests, n_at_once=n)
            if round_:
                runs[name].append(found[name])
        expected, answers = found[plain].answers, found[guessing].answers
        n_differences += sum(expected[key] != answers[key] for key in expected)
    after = backends[guessing].stats()
    pairs = list(zip(runs[guessing], runs[plain], strict=True))
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in pairs]
    stream_ratios = [a.stream_tokens_per_s / b.stream_tokens_per_s for a, b in pairs]
    medians = {
        f"{name}_tokens_per_s": round(statistics.median(run.tokens_per_s for run in found_), 1)
        for name, found_ in runs.items()
    }
    return {
        **medians,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "stream_ratio": round(statistics.median(stream_ratios), 3),
        "stream_ratios": [round(ratio, 3) for ratio in sorted(stream_ratios)],
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
    backends: dict[str, NativeBackend] = {
        name: NativeBackend(
            EngineConfig(model_dir=args.model_dir, speculation=name, dtype="bfloat16")
        )
        for name in _NAMES
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
            n_requests = max(MIN_REQUESTS, n * REQUESTS_PER_PLACE)
            case = compare(backends, workload, n=n, n_requests=n_requests, args=args)
            result["cases"][f"{workload}, {n} at once"] = case
            print(f"{workload}, {n} at once: {case}", flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
