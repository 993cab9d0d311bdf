"""Clients that go away at any moment, and clients that stop reading: their sequences end, their
blocks come back, their usage is settled, and the server's memory stays where it was."""

import asyncio
import contextlib
import random
import statistics
import time

import psutil
import pytest

from apps.engines.health import EngineHealth
from tests.faults.streaming import connection, long_answer, read_stream
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

N_DISCONNECTS = 200
N_AT_ONCE = 16
N_MEASURED = 11
N_STALLED = 20
# What allocators and caches may still settle to after the warm-up.
RSS_SLACK_BYTES = 24 * 1024 * 1024


async def leave_after(product: RunningProduct, *, delay_s: float, stream: bool) -> None:
    body = long_answer(product, n_tokens=400, stream=stream)
    async with connection(product, body) as reader:
        try:
            async with asyncio.timeout(delay_s):
                await reader.read()
        except TimeoutError:
            return


async def disconnect_many(product: RunningProduct, *, n: int, rng: random.Random) -> None:
    gate = asyncio.Semaphore(N_AT_ONCE)

    async def one(delay_s: float, *, stream: bool) -> None:
        async with gate:
            await leave_after(product, delay_s=delay_s, stream=stream)

    async with asyncio.TaskGroup() as group:
        for turn in range(n):
            group.create_task(one(rng.uniform(0.0, 1.2), stream=turn % 3 != 0))


async def idle(product: RunningProduct, *, timeout_s: float = 15) -> EngineHealth:
    async def check() -> EngineHealth | None:
        stats = await product.engine_stats()
        return stats if stats.n_running + stats.n_waiting == 0 else None

    found = await wait_until_async("the engine to be idle", check, timeout_s=timeout_s)
    assert found is not None
    return found


async def settled(product: RunningProduct) -> None:
    await wait_until_async(
        "every usage row to be settled", lambda: product.n_open_usage_rows() == 0, timeout_s=15
    )


async def test_disconnects_at_random_points(product: RunningProduct) -> None:
    rng = random.Random(2026)
    web = psutil.Process(product.web_pid())
    await disconnect_many(product, n=40, rng=rng)  # warm-up: imports, pools, caches
    await idle(product)
    rss_before = web.memory_info().rss

    await disconnect_many(product, n=N_DISCONNECTS, rng=rng)

    stats = await idle(product)
    assert stats.n_blocks_free == stats.n_blocks_total
    await settled(product)
    growth = web.memory_info().rss - rss_before
    print(f"the server grew by {growth / 2**20:.1f} MiB over {N_DISCONNECTS} disconnects")
    assert growth < RSS_SLACK_BYTES


@pytest.mark.parametrize("stream", [True, False])
async def test_a_disconnect_ends_its_sequence_within_two_steps(
    product: RunningProduct, *, stream: bool
) -> None:
    """The median of many, because this process may be held up between its look and its leaving."""
    body = long_answer(product, n_tokens=400, stream=stream)
    n_steps = []
    for _ in range(N_MEASURED):
        async with connection(product, body):
            await wait_until_async("a step", lambda: _n_running(product, at_least=1))
            before = await product.engine_stats()
        n_steps.append((await idle(product)).n_steps - before.n_steps)
    print(f"steps from the disconnect to the abort: {n_steps}")
    assert statistics.median(n_steps) <= 2


async def test_clients_that_stop_reading_are_cancelled(product: RunningProduct) -> None:
    """Others are served as before, and what the stalled ones hold is bounded."""
    web = psutil.Process(product.web_pid())
    rss_before = web.memory_info().rss
    body = long_answer(product, n_tokens=7000)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(N_STALLED):
            await stack.enter_async_context(connection(product, body, receive_buffer=4096))
        await wait_until_async(
            "the stalled requests to run",
            lambda: _n_running(product, at_least=N_STALLED),
            timeout_s=30,
        )
        async with connection(product, long_answer(product, n_tokens=16)) as reader:
            transcript = await read_stream(reader)
        assert transcript.finish_reasons == ["length"]
        # Nobody read a byte; the deadline of the door ends them all.
        deadline_s = product.stall_timeout_s + 150
        started = time.monotonic()
        stats = await idle(product, timeout_s=deadline_s)
        assert time.monotonic() - started < deadline_s
        assert stats.n_blocks_free == stats.n_blocks_total
        await settled(product)
        growth = web.memory_info().rss - rss_before
        print(f"{N_STALLED} stalled clients were cut off after {time.monotonic() - started:.0f} s")
        print(f"the server grew by {growth / 2**20:.1f} MiB meanwhile")
        assert growth < RSS_SLACK_BYTES
    outcomes = product.usage_outcomes()
    assert outcomes["aborted"] >= N_STALLED


async def _n_running(product: RunningProduct, *, at_least: int) -> bool:
    stats = await product.engine_stats()
    return stats.n_running + stats.n_waiting >= at_least
