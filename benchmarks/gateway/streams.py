"""Many streams at once from processes of their own, over HTTP or straight over an engine's socket:
what one process could read would bound what servers can be seen to do.

    python -m benchmarks.gateway.streams < WORK

It reads its work as JSON, says ``ready``, and begins at the next line; it says as JSON what came.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from apps.engines.client import EngineClient
from benchmarks.runners import http_runner, socket_runner
from benchmarks.workload import Runner, Timeline, jobs, timelines_of

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where streams come from: a server, or the socket of an engine where that is given."""

    model: str = ""
    host: str = ""
    port: int = 0
    api_token: str = ""
    socket_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """What came of one round. tokens_per_s: from the first request to the last token, of all.
    tokens_an_event: above 1 where several went as one. itl: between events. cpu_us_a_token: of all
    clients."""

    n_streams: int
    n_answers: int
    n_tokens: int
    tokens_per_s: float
    tokens_an_event: float
    ttft_p50_ms: float
    ttft_worst_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    cpu_us_a_token: float


def play(
    place: Place,
    *,
    n_streams: int,
    n_jobs: int,
    n_new: int,
    n_processes: int,
    vocab_size: int,
    seed: int,
    env: Mapping[str, str],
) -> Came:
    """Run so many answers, ``n_streams`` at a time; each has ``n_new`` tokens, half more or less.

    Raises:
        RuntimeError: a process failed; the message says how.
    """
    streams, batches = _shares(n_streams, n=n_processes), _shares(n_jobs, n=n_processes)
    command = [sys.executable, "-m", "benchmarks.gateway.streams"]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            text=True,
        )
        for _ in streams
    ]
    try:
        for index, process in enumerate(processes):
            work = {
                "place": asdict(place),
                "n_streams": streams[index],
                "n_jobs": batches[index],
                "n_new": n_new,
                "vocab_size": vocab_size,
                "seed": 1000 * seed + index,
            }
            _tell(process, json.dumps(work))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # all are ready before one begins
        for process in processes:
            _tell(process, "go")
        said = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"streams failed: {errors.strip()[-400:]}")
    return _came([json.loads(output) for output, _ in said], n_streams=n_streams)


def _shares(total: int, *, n: int) -> list[int]:
    return [total * (k + 1) // n - total * k // n for k in range(n)]


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _came(parts: Sequence[dict[str, Any]], *, n_streams: int) -> Came:
    streams = [
        Timeline(each["started"], [(at, n) for at, n in each["arrivals"]])
        for part in parts
        for each in part["streams"]
    ]
    n_tokens = sum(stream.n_tokens for stream in streams)
    began_s, ended_s = (
        min(stream.started for stream in streams),
        max(stream.arrivals[-1][0] for stream in streams),
    )
    gaps = sorted(
        later - at
        for stream in streams
        for (at, _), (later, _) in zip(stream.arrivals, stream.arrivals[1:], strict=False)
    )
    ttfts = sorted(stream.ttft_s for stream in streams)
    return Came(
        n_streams=n_streams,
        n_answers=len(streams),
        n_tokens=n_tokens,
        tokens_per_s=round(n_tokens / (ended_s - began_s), 1),
        tokens_an_event=round(n_tokens / sum(len(each.arrivals) for each in streams), 2),
        ttft_p50_ms=round(1e3 * ttfts[len(ttfts) // 2], 1),
        ttft_worst_ms=round(1e3 * ttfts[-1], 1),
        itl_p50_ms=round(1e3 * gaps[len(gaps) // 2], 2),
        itl_p99_ms=round(1e3 * gaps[int(len(gaps) * 0.99)], 2),
        cpu_us_a_token=round(1e6 * sum(part["cpu_s"] for part in parts) / n_tokens, 1),
    )


async def _run(work: dict[str, Any]) -> dict[str, Any]:
    place = Place(**work["place"])
    lengths = random.Random(work["seed"])
    n_new = work["n_new"]
    batch = [
        replace(job, n_new=lengths.randint(n_new - n_new // 2, n_new + n_new // 2))
        for job in jobs(
            n=work["n_jobs"], vocab_size=work["vocab_size"], n_new=n_new, seed=work["seed"]
        )
    ]
    client: EngineClient | None = None
    if place.socket_path:
        client = EngineClient(place.socket_path, name="benchmark")
        await client.connect()
        run: Runner = socket_runner(client)
    else:
        run = http_runner(place)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    cpu_s = time.process_time()
    timelines = await timelines_of(run, batch, concurrency=work["n_streams"])
    cpu_s = time.process_time() - cpu_s
    for job, timeline in zip(batch, timelines, strict=True):
        if timeline.n_tokens != job.n_new:
            raise RuntimeError(f"{timeline.n_tokens} tokens came, {job.n_new} were due")
    if client is not None:
        await client.close()
    streams = [{"started": each.started, "arrivals": each.arrivals} for each in timelines]
    return {"cpu_s": cpu_s, "streams": streams}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.loads(sys.stdin.readline())))))
