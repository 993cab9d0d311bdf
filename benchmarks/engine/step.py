"""What a whole step of the engine takes, on the compiled kernels beside the reference.

    python -m benchmarks.engine.step [--rounds 5] [--dtype float32]

Both run the same sequences of SmolLM2 in one process, a stretch of steps each in turn: a step is
scheduling, the model and sampling. ``rows_us`` is what building the compiled kernels' rows takes of
it, a sequence.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import DTypeName, EngineConfig, KernelsName
from engine_service.protocol import SamplingParams
from engine_service.runner.compiled import ragged_rows
from tests.models import smollm2_dir

RESULT = Path(__file__).parents[1] / "results" / "step.json"
BATCHES = (1, 8, 32, 64)
N_PROMPT = 64
N_STEPS = 12
KERNELS: tuple[KernelsName, ...] = ("compiled", "reference")


def make_backend(kernels: KernelsName, *, dtype: DTypeName) -> NativeBackend:
    config = EngineConfig(
        model_dir=smollm2_dir(),
        dtype=dtype,
        kernels=kernels,
        kv_cache_tokens=64 * 512,
        speculation="off",
    )
    return NativeBackend(config)


def start(backend: NativeBackend, *, n_sequences: int) -> None:
    """Bring so many sequences past their prompts."""
    for key in range(n_sequences):
        backend.add(
            EngineRequest(
                key=key,
                prompt_token_ids=tuple(100 + (key * 7 + i * 13) % 4000 for i in range(N_PROMPT)),
                sampling=SamplingParams(temperature=0.0, ignore_eos=True),
                max_new_tokens=400,
            )
        )
    n_started: set[int] = set()
    while len(n_started) < n_sequences:
        n_started |= {output.key for output in backend.step()}


def stretch_ms(backend: NativeBackend) -> float:
    """Return the median of a stretch of steps."""
    times = []
    for _ in range(N_STEPS):
        started_s = time.perf_counter()
        backend.step()
        times.append((time.perf_counter() - started_s) * 1e3)
    return statistics.median(times)


def rows_us(backend: NativeBackend) -> float:
    """Return the processor time of building the newest batch's rows, a sequence; a median."""
    batch = backend._batch
    assert batch is not None
    times = []
    for _ in range(50):
        started_s = time.thread_time()
        ragged_rows(batch)
        times.append((time.thread_time() - started_s) * 1e6)
    return statistics.median(times) / len(batch.rows)


def measure(
    backends: dict[KernelsName, NativeBackend], *, n_sequences: int, n_rounds: int
) -> dict[str, float]:
    for backend in backends.values():
        start(backend, n_sequences=n_sequences)
        stretch_ms(backend)
    found: dict[KernelsName, list[float]] = {name: [] for name in backends}
    for _ in range(n_rounds):
        for name, backend in backends.items():
            found[name].append(stretch_ms(backend))
    figures = {}
    for name, times in found.items():
        figures[f"{name}_ms"] = round(statistics.median(times), 2)
        figures[f"{name}_tokens_s"] = round(n_sequences / statistics.median(times) * 1e3, 1)
    ratios = [slow / fast for fast, slow in zip(*found.values(), strict=True)]
    figures["ratio"] = round(statistics.median(ratios), 2)
    figures["rows_us"] = round(rows_us(backends["compiled"]), 2)
    for backend in backends.values():
        for key in range(n_sequences):
            backend.abort(key)
        backend.step()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=get_args(DTypeName), default="auto")
    options = parser.parse_args()
    backends = {name: make_backend(name, dtype=options.dtype) for name in KERNELS}
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "model": "SmolLM2-135M-Instruct",
        "dtype": backends["compiled"].info.dtype,
        "kernels": backends["compiled"].info.kernels,
        "rounds": options.rounds,
        "batches": {},
    }
    for n in BATCHES:
        figures = measure(backends, n_sequences=n, n_rounds=options.rounds)
        print(f"batch {n}: {figures}", flush=True)
        result["batches"][str(n)] = figures
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
