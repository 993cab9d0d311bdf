"""The comparison with another gateway: what counts as missed, and what the idle server answers."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from benchmarks.gateway.litellm import misses, ratios
from benchmarks.gateway.load import Load, median_of
from benchmarks.gateway.upstream import Upstream

THEIRS = Load(requests_per_s=120, p50_ms=130, p95_ms=200, rss_mb=350, cpu_ms=8.0, n_requests=600)
OURS = Load(requests_per_s=480, p50_ms=43, p95_ms=100, rss_mb=140, cpu_ms=1.6, n_requests=2400)


def changed(load: Load, **fields: Any) -> Load:
    names = ("requests_per_s", "p50_ms", "p95_ms", "rss_mb", "cpu_ms", "n_requests")
    return Load(**({name: getattr(load, name) for name in names} | fields))


def test_what_just_meets_the_targets_misses_none() -> None:
    loads = {"litellm": {16: THEIRS}, "sqlite": {16: OURS}}
    assert misses(loads, {"sqlite": {"1": 4.0}}) == []
    assert ratios(loads)["sqlite"]["16"]["requests_per_s"] == 4.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"requests_per_s": 479.0}, "sqlite, 16 at a time: requests_per_s is 3.99 of theirs"),
        ({"p50_ms": 44.0}, "sqlite, 16 at a time: p50_ms is 0.34 of theirs"),
        ({"p95_ms": 101.0}, "sqlite, 16 at a time: p95_ms is 0.51 of theirs"),
        ({"rss_mb": 200.0}, "sqlite: 200 MB"),
    ],
)
def test_what_is_missed_is_named(fields: dict[str, float], said: str) -> None:
    loads = {"litellm": {16: THEIRS}, "sqlite": {16: changed(OURS, **fields)}}
    assert misses(loads, {"sqlite": {"1": 4.0}}) == [said]


def test_a_statement_too_many_is_missed() -> None:
    loads = {"litellm": {16: THEIRS}, "sqlite": {16: OURS}}
    assert misses(loads, {"sqlite": {"1": 4.1, "16": 0.9}}) == ["sqlite: 4.1 statements a request"]


def test_medians_are_of_rounds_and_memory_is_the_most() -> None:
    rounds = [changed(OURS, p95_ms=ms, rss_mb=ms) for ms in (90.0, 300.0, 100.0)]
    found = median_of(rounds)
    assert (found.p95_ms, found.rss_mb, found.n_requests) == (100.0, 300.0, 7200)


async def test_the_idle_server_answers_each_request_once() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        models = await client.get("/v1/models")
        assert models.json()["data"][0]["id"] == "nothing"
        for size in (1, 100_000):
            body = {"model": "nothing", "messages": [{"role": "user", "content": "x" * size}]}
            answer = await client.post("/v1/chat/completions", json=body)
            assert json.loads(answer.content)["usage"]["total_tokens"] == 17
