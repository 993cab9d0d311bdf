"""A real engine process that sleeps, seen by the platform's client."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineClientError
from apps.engines.health import EngineHealth
from apps.engines.policy import Timings
from tests.integration.wire.harness import start, text_of
from tests.models import random_llama_dir
from tests.processes import running_engine
from tests.waiting import wait_until, wait_until_async

OPTIONS = ("--kernels", "torch", "--dtype", "float32", "--sleep-after-s", "0.5")


@pytest.mark.parametrize("n_ranks", [1, 2])
async def test_it_sleeps_wakes_for_a_request_and_answers_each_ping_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_ranks: int
) -> None:
    model_dir = random_llama_dir(tmp_path)
    options = [*OPTIONS, "--kv-cache-tokens", "4096", "--tensor-parallel", str(n_ranks)]
    if n_ranks > 1:  # on the processor, also where there is one GPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with running_engine(model_dir, tmp_path, *options) as engine:
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


async def test_it_takes_memory_only_in_its_turn(tmp_path: Path) -> None:
    """Told by the agent's pings; those of others say nothing, and neither does its silence."""
    model_dir = random_llama_dir(tmp_path)
    options = (*OPTIONS[:-1], "1000", "--kv-cache-tokens", "4096")
    with running_engine(model_dir, tmp_path, *options) as engine:
        agent, other = (
            EngineClient(str(engine.socket_path), name=name) for name in ("agent", "other")
        )
        for client in (agent, other):
            await client.connect()

        async def start_and_read(request_id: str) -> str:
            sampling = {"max_tokens": 20, "temperature": 0.0}
            return await text_of(await start(other, request_id, text="the same", **sampling))

        async def gives_back() -> bool:
            return (await other.ping(5.0)).is_given_back

        text = await start_and_read("r0")
        assert not (await agent.ping(5.0, may_hold_memory=False)).waits_for_memory
        await wait_until_async("it to give its memory back", gives_back)
        await agent.close()
        waiting = [asyncio.create_task(start_and_read(f"r{i}")) for i in (1, 2)]

        async def waits() -> EngineHealth | None:
            health = await other.ping(5.0)
            return health if health.n_waiting == 2 else None

        health = await wait_until_async("both to wait", waits)
        assert health is not None
        assert (health.waits_for_memory, health.is_given_back, health.n_running) == (True, True, 0)
        again = EngineClient(str(engine.socket_path), name="agent")
        await again.connect()
        assert (await again.ping(5.0)).is_given_back
        assert not any(task.done() for task in waiting)
        await again.ping(5.0, may_hold_memory=True)
        assert await asyncio.gather(*waiting) == [text] * 2
        assert not (await other.ping(5.0)).is_given_back
        for client in (again, other):
            await client.close()


async def test_a_stop_does_not_wait_for_a_turn(tmp_path: Path) -> None:
    """As when the agent dies: what waits for memory is told, and the process ends."""
    model_dir = random_llama_dir(tmp_path)
    options = (*OPTIONS[:-1], "1000", "--kv-cache-tokens", "4096", "--drain-s", "0.5")
    with running_engine(model_dir, tmp_path, *options) as engine:
        client = EngineClient(str(engine.socket_path), name="agent")
        await client.connect()
        await client.ping(5.0, may_hold_memory=False)
        stream = await start(client, "r0", max_tokens=20)

        async def waits() -> bool:
            return (await client.ping(5.0)).waits_for_memory

        await wait_until_async("it to wait", waits)
        engine.process.terminate()
        with pytest.raises(EngineClientError):
            await text_of(stream)
        wait_until("it to stop", lambda: engine.process.poll() is not None)
        assert engine.process.returncode == 0
        await client.close()
