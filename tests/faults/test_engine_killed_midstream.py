"""`kill -9` of the engine while clients stream: each gets a well-formed end, the service comes
back by itself, and the ledger has no open row."""

import asyncio
import os
import signal
import time

import pytest

from tests.faults.streaming import Transcript, connection, long_answer, read_stream
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

N_STREAMS = 16


async def one_stream(product: RunningProduct, started: asyncio.Event) -> Transcript:
    async with connection(product, long_answer(product, n_tokens=1500)) as reader:
        return await read_stream(reader, started)


async def test_every_stream_ends_in_band_and_service_returns(product: RunningProduct) -> None:
    engine = product.engine()
    started = [asyncio.Event() for _ in range(N_STREAMS)]
    streams = [asyncio.create_task(one_stream(product, event)) for event in started]
    async with asyncio.timeout(60):
        await asyncio.gather(*(event.wait() for event in started))

    killed_at = time.monotonic()
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        transcripts = await asyncio.gather(*streams)
    print(f"{N_STREAMS} streams ended {time.monotonic() - killed_at:.2f} s after the kill")

    for transcript in transcripts:
        assert transcript.status == 200
        assert len(transcript.errors) == 1
        assert transcript.errors[0]["code"] == "engine_unavailable"
        assert set(transcript.errors[0]) == {"message", "type", "param", "code"}
        assert "error" in transcript.events[-1]
        assert transcript.is_done
        assert transcript.finish_reasons == []

    await wait_until_async(
        "the product to be ready again",
        product.is_ready,
        timeout_s=killed_at + 30 - time.monotonic(),
    )
    print(f"ready again {time.monotonic() - killed_at:.1f} s after the kill")
    assert product.engine().pid != engine.pid
    assert product.engine().epoch == engine.epoch + 1
    stats = await product.engine_stats()
    assert stats.n_blocks_free == stats.n_blocks_total
    assert product.n_open_usage_rows() == 0
    assert product.usage_outcomes()["failed"] >= N_STREAMS

    async with connection(product, long_answer(product, n_tokens=8)) as reader:
        transcript = await read_stream(reader)
    assert transcript.status == 200
    assert transcript.finish_reasons == ["length"]
