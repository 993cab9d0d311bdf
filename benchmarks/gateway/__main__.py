"""What the doors cost: the same jobs, in the same engine process, over HTTP streaming and straight
over its socket, alternated in one run.

    python -m benchmarks.gateway [--rounds 3] [--concurrency 1 8 32]

It starts the product with its own VAR, so that nothing else is disturbed, and quotes ratios: a
shared machine is noisy.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from apps.engines.client import EngineClient
from benchmarks.runners import http_runner, socket_runner
from benchmarks.workload import Measure, jobs, measure, median_of
from tests.serve import RunningProduct, running_product

RESULTS = Path(__file__).parent.parent / "results"


async def compare(
    product: RunningProduct, *, rounds: int, levels: list[int]
) -> dict[str, dict[str, Measure]]:
    client = EngineClient(product.engine().socket_path, name="benchmark")
    await client.connect()
    runners = {"engine": socket_runner(client), "http": http_runner(product)}
    results: dict[str, dict[str, Measure]] = {}
    for level in levels:
        seen: dict[str, list[Measure]] = {name: [] for name in runners}
        for turn in range(rounds):
            order = list(runners) if turn % 2 == 0 else list(reversed(runners))
            for name in order:
                # Other ids each time: the prefix cache must help neither side.
                batch = jobs(
                    n=max(2, 2 * level) if level > 1 else 3,
                    vocab_size=client.info.vocab_size,
                    n_new=128,
                    seed=1000 * level + 10 * turn + list(runners).index(name),
                )
                seen[name].append(await measure(runners[name], batch, concurrency=level))
                print(
                    f"  concurrency {level}, round {turn + 1}, {name}: "
                    f"{seen[name][-1].tokens_per_s:.0f} tokens/s",
                    file=sys.stderr,
                )
        results[str(level)] = {name: median_of(values) for name, values in seen.items()}
    await client.close()
    return results


def table(results: dict[str, dict[str, Measure]]) -> str:
    lines = [
        f"{'concurrency':>11} {'':8} {'tokens/s':>9} {'TTFT ms':>9} {'ITL ms':>8} {'ITL p99':>8}"
    ]
    for level, by_name in results.items():
        for name, m in by_name.items():
            lines.append(
                f"{level:>11} {name:8} {m.tokens_per_s:9.1f} {m.ttft_ms:9.1f} "
                f"{m.itl_ms:8.1f} {m.itl_p99_ms:8.1f}"
            )
        ratio = by_name["http"].tokens_per_s / by_name["engine"].tokens_per_s
        lines.append(f"{level:>11} http/engine tokens/s: {ratio:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--output", type=Path, default=RESULTS / "gateway.json")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nano-bench-") as var,
        running_product(Path(var)) as product,
    ):
        results = asyncio.run(compare(product, rounds=options.rounds, levels=options.concurrency))
    print(table(results))
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu_count": os.cpu_count(), "machine": platform.machine()},
        "rounds": options.rounds,
        "results": {
            level: {name: asdict(m) for name, m in by_name.items()}
            for level, by_name in results.items()
        },
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
