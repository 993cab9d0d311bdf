"""How a gateway is loaded, by ``wrk``, and what it answered."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.gateway.servers import Gateway
from benchmarks.gateway.upstream import MODEL

FIRST_ANSWER_TIMEOUT_S: Final = 120.0
_SCRIPT: Final = Path(__file__).with_name("chat.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of one round. rss_mb: of the gateway's process after it, in 10^6 bytes.

    cpu_ms: of the gateway's process, for a request.
    """

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    rss_mb: float
    cpu_ms: float
    n_requests: int


def require_wrk() -> str:
    """Return where ``wrk`` is; raises SystemExit where it is not."""
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    return found


def first_answer(gateway: Gateway) -> None:
    """Wait for one answer: a replica must be found ready, and what is made or loaded on first use
    may take its time."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
    request = urllib.request.Request(
        f"{gateway.base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {gateway.key}"},
    )
    until_s = time.monotonic() + FIRST_ANSWER_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=FIRST_ANSWER_TIMEOUT_S) as answer:
                assert json.load(answer)["usage"]["total_tokens"] == 17, "another server answered"
                return
        except urllib.error.HTTPError as error:
            if time.monotonic() > until_s:
                raise RuntimeError(f"{gateway.name}: {error.read().decode()}") from error
            time.sleep(0.5)


def load(gateway: Gateway, *, concurrency: int, seconds: int) -> Load:
    """Send requests for so long, ``concurrency`` at a time.

    Raises:
        RuntimeError: some were refused or not answered, and the figures would mean nothing.
    """
    before = gateway.cpu_s()
    done = subprocess.run(
        [
            *(require_wrk(), "--threads", "1", "--connections", str(concurrency)),
            *("--duration", f"{seconds}s", "--timeout", "10s", "--script", str(_SCRIPT)),
            f"{gateway.base_url}/chat/completions",
        ],
        env={**os.environ, "BENCHMARK_KEY": gateway.key},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["n_refused"] or found["n_broken"] or not found["n_requests"]:
        raise RuntimeError(f"{gateway.name} at {concurrency}: {found}\n{gateway.log()[-2000:]}")
    return Load(
        requests_per_s=found["n_requests"] / found["seconds"],
        p50_ms=found["p50_ms"],
        p95_ms=found["p95_ms"],
        rss_mb=gateway.rss_mb(),
        cpu_ms=1000 * (gateway.cpu_s() - before) / found["n_requests"],
        n_requests=found["n_requests"],
    )


def median_of(loads: list[Load]) -> Load:
    """Return the median of each figure over rounds; of memory the most."""
    return Load(
        requests_per_s=median(each.requests_per_s for each in loads),
        p50_ms=median(each.p50_ms for each in loads),
        p95_ms=median(each.p95_ms for each in loads),
        rss_mb=max(each.rss_mb for each in loads),
        cpu_ms=median(each.cpu_ms for each in loads),
        n_requests=sum(each.n_requests for each in loads),
    )
