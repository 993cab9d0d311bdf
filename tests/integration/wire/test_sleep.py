"""A real engine process that sleeps, seen by the platform's client."""

import asyncio
import contextlib
import time
from pathlib import Path

from apps.engines.client import EngineClient
from apps.engines.policy import Timings
from tests.integration.wire.harness import start, text_of
from tests.models import random_llama_dir
from tests.processes import running_engine
from tests.waiting import wait_until, wait_until_async

OPTIONS = ("--kernels", "torch", "--dtype", "float32", "--sleep-after-s", "0.5")


async def test_it_sleeps_wakes_for_a_request_and_answers_each_ping_in_time(tmp_path: Path) -> None:
    model_dir = random_llama_dir(tmp_path)
    with running_engine(model_dir, tmp_path, *OPTIONS, "--kv-cache-tokens", "4096") as engine:
        client = EngineClient(str(engine.socket_path), name="test")
        await client.connect()
        worst_s = 0.0

        async def is_asleep() -> bool:
            nonlocal worst_s
            health = await client.ping(Timings().ping_deadline_s)
            worst_s = max(worst_s, health.round_trip_s)
            return health.is_asleep

        async def ping_on() -> None:
            while True:
                await is_asleep()
                await asyncio.sleep(0.001)

        pings = asyncio.create_task(ping_on())
        texts = []
        for i in range(3):
            stream = await start(client, f"r{i}", text="the same", max_tokens=20, temperature=0.0)
            texts.append(await text_of(stream))
            assert not await is_asleep()
            await wait_until_async("it to sleep", is_asleep)
        assert texts[0]
        assert texts == texts[:1] * 3
        assert await client.purge("nobody", timeout_s=5.0) == 0
        assert await is_asleep()
        pings.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pings
        assert worst_s < Timings().ping_deadline_s
        await client.close()
        started_s = time.monotonic()
        engine.process.terminate()
        wait_until("it to stop", lambda: engine.process.poll() is not None)
        assert engine.process.returncode == 0
        assert time.monotonic() - started_s < 5.0
