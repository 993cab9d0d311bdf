"""What a request costs in our gateway and in LiteLLM's proxy, in front of the same server that does
nothing, alternated in one run.

    python -m benchmarks.gateway.litellm [--rounds 5] [--seconds 4] [--concurrency 1 16 64]

Ours: one server process with production's settings, limits, durable ledger and audit on, a remote
replica; on SQLite, and on PostgreSQL with Redis where they answer. Theirs: one worker without a
database. Believe the ratios: they are of medians over rounds, and the machine is the same.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from benchmarks.gateway.load import Load, first_answer, load, median_of, require_wrk
from benchmarks.gateway.servers import Gateway, litellm, litellm_version, ours, upstream

RESULTS: Final = Path(__file__).parent.parent / "results" / "gateway-litellm.json"
PEER: Final = "litellm"
LEVELS_OF_TARGET: Final = (16, 64)

_numbers = itertools.count()

Store = Callable[[], AbstractContextManager[Mapping[str, str]]]
Loads = dict[str, dict[int, Load]]


def compare(gateways: list[Gateway], *, rounds: int, levels: list[int], seconds: int) -> Loads:
    """Return the median of each gateway at each level, all loaded in turn in every round."""
    seen: dict[str, dict[int, list[Load]]] = {each.name: {} for each in gateways}
    for each in gateways:
        first_answer(each)
        load(each, concurrency=max(levels), seconds=2)
    for turn in range(rounds):
        for level in levels:
            for each in gateways if turn % 2 == 0 else reversed(gateways):
                found = load(each, concurrency=level, seconds=seconds)
                seen[each.name].setdefault(level, []).append(found)
                said = f"  round {turn + 1}, {level:2} at a time, {_line(each.name, found)}"
                print(said, flush=True)
    return {
        name: {level: median_of(loads) for level, loads in by_level.items()}
        for name, by_level in seen.items()
    }


def statements(directory: Path, *, upstream_url: str, store: Store) -> dict[str, float]:
    """Return how many SQL statements a request costs, alone and of 16 at a time."""
    found = {}
    with (
        store() as stores,
        ours("counted", directory, upstream_url=upstream_url, stores=stores, counted=True) as one,
    ):
        first_answer(one)
        for level in (1, 16):
            before = statements_so_far(one, directory)
            n_requests = load(one, concurrency=level, seconds=3).n_requests
            found[str(level)] = (statements_so_far(one, directory) - before) / n_requests
    return found


def statements_so_far(gateway: Gateway, directory: Path) -> int:
    """Ask a counted server; raises RuntimeError when it does not say."""
    said = directory / "statements"
    said.unlink(missing_ok=True)
    gateway.process.send_signal(signal.SIGUSR1)
    until_s = time.monotonic() + 30
    while not said.exists():
        if time.monotonic() > until_s:
            raise RuntimeError("the server does not say how many statements it made")
        time.sleep(0.05)
    return int(said.read_text())


def ratios(loads: Loads) -> dict[str, dict[str, dict[str, float]]]:
    """Return ours over theirs, of each figure at each level."""
    return {
        name: {
            str(level): {
                key: getattr(mine, key) / getattr(loads[PEER][level], key)
                for key in ("requests_per_s", "p50_ms", "p95_ms", "rss_mb", "cpu_ms")
            }
            for level, mine in by_level.items()
        }
        for name, by_level in loads.items()
        if name != PEER
    }


def misses(loads: Loads, statements_of: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return what of issue 6's seventh demand is not met."""
    found = []
    for name, by_level in ratios(loads).items():
        for level in LEVELS_OF_TARGET:
            if (ratio := by_level.get(str(level))) is None:
                continue
            for key, is_met in (
                ("requests_per_s", ratio["requests_per_s"] >= 4),
                ("p50_ms", ratio["p50_ms"] <= 1 / 3),
                ("p95_ms", ratio["p95_ms"] <= 1 / 2),
            ):
                if not is_met:
                    found.append(f"{name}, {level} at a time: {key} is {ratio[key]:.2f} of theirs")
        if (rss_mb := max(each.rss_mb for each in loads[name].values())) >= 200:
            found.append(f"{name}: {rss_mb:.0f} MB")
        # To a tenth: every ten seconds a process looks anew who a token belongs to.
        if (n := round(max(statements_of[name].values()), 1)) > 4:
            found.append(f"{name}: {n:.1f} statements a request")
    return found


def _line(name: str, found: Load) -> str:
    return (
        f"{name:10} {found.requests_per_s:7.1f} requests/s, median {found.p50_ms:7.1f} ms, "
        f"p95 {found.p95_ms:7.1f} ms, {found.cpu_ms:5.2f} ms of CPU, {found.rss_mb:4.0f} MB"
    )


@contextlib.contextmanager
def _sqlite() -> Iterator[Mapping[str, str]]:
    yield {"ALLOW_SQLITE": "1", "ALLOW_LOCAL_CACHE": "1"}


@contextlib.contextmanager
def _postgresql(server: str, *, cache_url: str) -> Iterator[Mapping[str, str]]:
    """Make a database, and drop it afterwards."""
    name = f"nano_benchmark_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        try:
            yield {"DATABASE_URL": f"{server}/{name}", "CACHE_URL": cache_url}
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def _stores(options: argparse.Namespace) -> dict[str, Store]:
    """Return where ours may keep what it knows, by name; without what does not answer."""
    stores: dict[str, Store] = {"sqlite": _sqlite}
    try:
        psycopg.connect(f"{options.postgresql}/postgres", connect_timeout=3).close()
        redis.Redis.from_url(options.redis, socket_connect_timeout=3).ping()
    except (psycopg.OperationalError, redis.exceptions.ConnectionError) as error:
        print(f"Without PostgreSQL and Redis: {error}")
    else:
        stores["postgresql"] = partial(_postgresql, options.postgresql, cache_url=options.redis)
    return stores


def run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    stores = _stores(options)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(upstream(directory))
        gateways = [stack.enter_context(litellm(directory / PEER, upstream_url=url))]
        for name, store in stores.items():
            found = stack.enter_context(store())
            mine = ours(name, directory / name, upstream_url=url, stores=found)
            gateways.append(stack.enter_context(mine))
        loads = compare(
            gateways,
            rounds=options.rounds,
            levels=options.concurrency,
            seconds=options.seconds,
        )
        counted = {
            name: statements(directory / f"{name}-counted", upstream_url=url, store=store)
            for name, store in stores.items()
        }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu_count": os.cpu_count(), "machine": platform.machine()},
        "litellm": litellm_version(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "medians": {
            name: {str(level): asdict(each) for level, each in by_level.items()}
            for name, by_level in loads.items()
        },
        "ours_over_litellm": ratios(loads),
        "statements_a_request": counted,
        "misses": misses(loads, counted),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--postgresql", default="postgresql://postgres@127.0.0.1:5432")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/13")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory(prefix="nano-bench-") as directory:
        record = run(options, Path(directory))
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["ours_over_litellm"], indent=2))
    print("\n".join(record["misses"]) or "Every target is met.")
    return 1 if record["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
