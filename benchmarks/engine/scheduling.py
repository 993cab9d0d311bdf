"""What the scheduler itself costs a step, without a model.

    python -m benchmarks.engine.scheduling [--rounds 5]

All sequences decode in every step and belong to 16 tenants; ``turnover`` also ends and admits some.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.plot import bars
from engine_service.protocol import SamplingParams, Standing
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence

RESULT = Path(__file__).parents[1] / "results" / "scheduling.json"
N_PROMPT = 64
N_STEPS = 50
N_TENANTS = 16


def make_sequence(key: int, *, n_new: int, n_tenants: int) -> Sequence:
    return Sequence(
        key=key,
        prompt_token_ids=tuple(range(key, key + N_PROMPT)),
        sampling=SamplingParams(ignore_eos=True),
        max_new_tokens=n_new,
        cache_salt="",
        seed=0,
        standing=Standing(tenant=f"tenant-{key % n_tenants}", deadline_s=3600.0),
    )


def make_scheduler(n_sequences: int, *, max_waiting: int) -> Scheduler:
    return Scheduler(
        blocks=BlockManager(n_blocks=n_sequences * 16, block_size=16),
        max_sequences=n_sequences,
        max_batched_tokens=n_sequences + 8192,
        max_waiting=max_waiting,
        max_model_len=4096,
        eos_token_ids=frozenset(),
    )


def timed_steps(scheduler: Scheduler, *, n_steps: int) -> tuple[float, float]:
    """Return the median seconds of a schedule and of an update."""
    schedules, updates = [], []
    for _ in range(n_steps):
        started_s = time.perf_counter()
        batch = scheduler.schedule()
        scheduled_s = time.perf_counter()
        token_ids = [(1,)] * len(batch.sampled)
        updating_s = time.perf_counter()
        scheduler.update(batch, token_ids=token_ids)
        schedules.append(scheduled_s - started_s)
        updates.append(time.perf_counter() - updating_s)
    return statistics.median(schedules), statistics.median(updates)


def decode_steps(n_sequences: int) -> dict[str, float]:
    """Cost of steps in which every sequence decodes one token."""
    scheduler = make_scheduler(n_sequences, max_waiting=n_sequences)
    for key in range(n_sequences):
        scheduler.add(make_sequence(key, n_new=N_STEPS + 60, n_tenants=N_TENANTS))
    while any(not sequence.is_decoding for sequence in scheduler.running) or scheduler.n_waiting:
        batch = scheduler.schedule()
        scheduler.update(batch, token_ids=[(1,)] * len(batch.sampled))
    schedule_s, update_s = timed_steps(scheduler, n_steps=N_STEPS)
    return in_figures(schedule_s, update_s, n_sequences=n_sequences)


def turnover_steps(n_sequences: int, *, n_waiting: int, n_tenants: int) -> dict[str, float]:
    """Cost of steps in which sequences end and others come out of a long queue."""
    scheduler = make_scheduler(n_sequences, max_waiting=n_sequences + n_waiting)
    for key in range(n_sequences + n_waiting):
        scheduler.add(make_sequence(key, n_new=32 + key % 32, n_tenants=n_tenants))
    for _ in range(64):
        batch = scheduler.schedule()
        scheduler.update(batch, token_ids=[(1,)] * len(batch.sampled))
    schedule_s, update_s = timed_steps(scheduler, n_steps=N_STEPS)
    return in_figures(schedule_s, update_s, n_sequences=n_sequences)


def in_figures(schedule_s: float, update_s: float, *, n_sequences: int) -> dict[str, float]:
    return {
        "schedule_ms": round(schedule_s * 1e3, 3),
        "update_ms": round(update_s * 1e3, 3),
        "us_per_sequence": round((schedule_s + update_s) / n_sequences * 1e6, 2),
    }


def block_manager(n_sequences: int) -> dict[str, float]:
    """Cost of holding and giving up 8 blocks for each of many sequences."""
    blocks = BlockManager(n_blocks=n_sequences * 8, block_size=16)
    started_s = time.perf_counter()
    tables = [blocks.claim(known=(), n_new=8) or [] for _ in range(n_sequences)]
    claimed_s = time.perf_counter()
    for table in tables:
        blocks.release(table)
    released_s = time.perf_counter()
    return {
        "claim_us": round((claimed_s - started_s) / n_sequences * 1e6, 2),
        "release_us": round((released_s - claimed_s) / n_sequences * 1e6, 2),
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    n_rounds = parser.parse_args().rounds
    gc.freeze()
    cases = {
        "decode, 32 running": lambda: decode_steps(32),
        "decode, 1,024 running": lambda: decode_steps(1024),
        "decode, 10,000 running": lambda: decode_steps(10_000),
        "turnover, 1,024 running, 10,000 waiting of 16 tenants": lambda: turnover_steps(
            1024, n_waiting=10_000, n_tenants=N_TENANTS
        ),
        "turnover, 1,024 running, 10,000 waiting of 10,000 tenants": lambda: turnover_steps(
            1024, n_waiting=10_000, n_tenants=10_000
        ),
        "block manager, 10,000 sequences of 8 blocks": lambda: block_manager(10_000),
    }
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "rounds": n_rounds,
        "cases": {name: medians([run() for _ in range(n_rounds)]) for name, run in cases.items()},
    }
    for name, figures in result["cases"].items():
        print(f"{name}: {figures}")
    picture = bars(
        title="What the scheduler costs, without a model",
        groups={
            "microseconds a sequence": {
                name: figures.get("us_per_sequence") or figures["claim_us"] + figures["release_us"]
                for name, figures in result["cases"].items()
            }
        },
        digits=1,
    )
    RESULT.with_suffix(".svg").write_text(picture)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
