"""The platform's client against the service, over a real socket."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from apps.engines.client import ChatMessage, ChatPrompt, EngineClient, SamplingParams, TokenPrompt
from apps.engines.exceptions import (
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineRequestError,
    EngineUnresponsive,
)
from apps.engines.types import GenerationResult, PreparedRequest
from engine_service.server.limits import Limits
from tests.integration.wire.echo import REFUSED_SALT
from tests.integration.wire.harness import EPOCH, running, start, text_of
from tests.unit.frontend.tokenizers import END, byte_level
from tests.waiting import wait_until_async


async def test_welcome_tells_who_is_here(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        assert (client.info.epoch, client.info.model) == (EPOCH, "tiny")
        assert (client.info.backend, client.info.max_model_len) == ("echo", 100_000)
        assert (client.info.kernels, client.info.quantization) == ("none", "int8")
        assert client.info.kv_cache_dtype == "fp8"
        assert not client.is_closed
        await client.close()
        assert client.is_closed


async def test_a_request_goes_all_the_way(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r", text="abc", max_tokens=7)
        assert await text_of(stream) == "abcabca"
        assert stream.result == GenerationResult(
            finish_reason="length", n_prompt_tokens=3, n_cached_tokens=0, n_completion_tokens=7
        )
        await client.close()


async def test_a_chat_is_prepared_with_what_the_context_leaves(tmp_path: Path) -> None:
    async with running(tmp_path / "run", max_model_len=50) as harness:
        client = await harness.client()
        n_prompt = len(byte_level().encode(f"[user] hi{END}[assistant]").ids)
        prepared = await client.prepare(
            request_id="r",
            prompt=ChatPrompt(messages=(ChatMessage(role="user", content="hi"),)),
            sampling=SamplingParams(),
            max_tokens=None,
            cache_salt="",
            timeout_s=5.0,
        )
        assert prepared == PreparedRequest(n_prompt_tokens=n_prompt, max_new_tokens=50 - n_prompt)
        await client.close()


async def test_many_streams_at_once_each_get_their_own_text(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()

        async def one(i: int) -> tuple[str, GenerationResult | None]:
            stream = await start(client, f"r{i}", text=f"<{i:03}>", max_tokens=20 + i)
            return await text_of(stream), stream.result

        answers = await asyncio.gather(*(one(i) for i in range(40)))
        for i, (text, result) in enumerate(answers):
            assert result is not None
            ids = byte_level().encode(f"<{i:03}>").ids
            whole = byte_level().decode([ids[j % len(ids)] for j in range(20 + i)])
            assert (text, result.n_completion_tokens) == (whole, 20 + i)
        await client.close()


async def test_a_stop_string_ends_the_sequence_in_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r", text="abc", stop=("cab",))
        assert await text_of(stream) == "ab"
        assert stream.result is not None
        assert (stream.result.finish_reason, stream.result.n_completion_tokens) == ("stop", 5)
        await wait_until_async("the sequence to leave", lambda: not harness.backend.running)
        assert harness.backend.n_aborted == 1
        await client.close()


async def test_an_abort_returns_the_final_count(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r")
        await anext(stream)
        await stream.abort()
        assert stream.result is not None
        assert stream.result.finish_reason == "abort"
        assert stream.result.n_completion_tokens == stream.n_completion_tokens > 0
        assert not harness.backend.running
        await client.close()


async def test_closing_aborts_everything(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        streams = [await start(client, f"r{i}") for i in range(5)]
        await wait_until_async("all to run", lambda: len(harness.backend.running) == 5)
        await client.close()
        for stream in streams:
            with pytest.raises(EngineDead):
                await text_of(stream)
        await wait_until_async("all to leave", lambda: not harness.backend.running)
        assert harness.backend.n_aborted == 5


async def test_steps_wait_for_a_loop_that_is_behind(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        await start(client, "r")
        await wait_until_async("it to run", lambda: bool(harness.backend.running))
        n_steps = harness.backend.n_steps
        time.sleep(0.2)  # noqa: ASYNC251 the loop hears of no step meanwhile
        n_ahead = harness.backend.n_steps - n_steps
        assert n_ahead <= harness.service.limits.max_undelivered_steps + 1
        await wait_until_async("more steps", lambda: harness.backend.n_steps > n_steps + 100)
        await client.close()


async def test_a_lost_engine_ends_every_wait_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r")
        harness.backend.steps.clear()
        ping = asyncio.create_task(client.ping(30.0))
        await asyncio.sleep(0)
        for connection in list(harness.service._connections):
            connection.close()
        async with asyncio.timeout(2.0):
            with pytest.raises(EngineDead, match="connection"):
                await ping
            with pytest.raises(EngineDead) as caught:
                await text_of(stream)
        assert caught.value.n_completion_tokens == stream.n_completion_tokens
        assert client.is_closed
        with pytest.raises(EngineDead):
            await start(client, "again")


@pytest.mark.parametrize(
    ("request_fields", "code", "param"),
    [
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"temperature": 3.0}, "invalid_value", "temperature"),
        ({"temperature": float("nan")}, "invalid_value", "temperature"),
        ({"text": "lone \ud800"}, "invalid_value", None),
        ({"seed": 2**70}, "invalid_value", None),
        ({"temperature": "hot"}, "invalid_value", None),
        ({"text": "x" * (9 * 1024 * 1024)}, "invalid_value", None),
    ],
)
async def test_a_bad_request_hurts_no_other(
    tmp_path: Path, request_fields: dict[str, Any], code: str, param: str | None
) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        other = await start(client, "other", max_tokens=5000)
        with pytest.raises(EngineRequestError) as caught:
            await start(client, "bad", **request_fields)
        assert (caught.value.code, caught.value.param) == (code, param)
        assert len(await text_of(other)) == 5000
        assert not client.is_closed
        await client.close()


async def test_what_the_backend_refuses_comes_by_the_stream(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r", cache_salt=REFUSED_SALT)
        with pytest.raises(EngineRequestError, match="refused"):
            await text_of(stream)
        await client.close()


async def test_more_than_was_prepared_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        await client.prepare(
            request_id="r",
            prompt=TokenPrompt(token_ids=(40,)),
            sampling=SamplingParams(),
            max_tokens=4,
            cache_salt="",
            timeout_s=5.0,
        )
        with pytest.raises(EngineRequestError, match="1 to 4 were prepared"):
            await text_of(await client.start("r", 5))
        await client.close()


async def test_a_failing_step_ends_its_requests_and_no_more(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        stream = await start(client, "r")
        await anext(stream)
        harness.backend.failures.append(RuntimeError("out of luck"))
        with pytest.raises(EngineFault, match="out of luck") as caught:
            await text_of(stream)
        assert caught.value.n_completion_tokens > 0
        assert await text_of(await start(client, "next", max_tokens=3)) == "abc"
        await client.close()


async def test_ping_is_answered_by_the_step_loop(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        health = await client.ping(5.0)
        assert (health.epoch, health.draining, health.n_running) == (EPOCH, False, 0)
        assert health.rss_bytes > 1_000_000
        assert 0 < health.round_trip_s < 5.0
        await start(client, "r")
        harness.backend.steps.clear()
        await wait_until_async("the step to hold", lambda: harness.backend.running)
        with pytest.raises(EngineUnresponsive):
            await client.ping(0.05)
        harness.backend.steps.set()
        assert (await client.ping(5.0)).n_running == 1
        await client.close()


async def test_draining_refuses_new_work_and_finishes_the_old(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        harness.backend.steps.clear()
        old = await start(client, "old", max_tokens=3)
        prepared = await client.prepare(
            request_id="late",
            prompt=TokenPrompt(token_ids=(40,)),
            sampling=SamplingParams(),
            max_tokens=4,
            cache_salt="",
            timeout_s=5.0,
        )
        drained = asyncio.create_task(harness.service.drain(9.0))
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded) as caught:
            await start(client, "new")
        assert caught.value.retry_after_s == 9.0
        with pytest.raises(EngineOverloaded):
            await text_of(await client.start("late", prepared.max_new_tokens))
        assert not drained.done()
        harness.backend.steps.set()
        assert await text_of(old) == "abc"
        await asyncio.wait_for(drained, 5.0)
        assert (await client.ping(5.0)).draining
        await client.close()


async def test_what_outlives_the_grace_ends_with_an_error(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        harness.backend.steps.clear()
        stream = await start(client, "r", max_tokens=3)
        await wait_until_async("the step to hold", lambda: harness.backend.running)
        await harness.service.drain(0.01)
        with pytest.raises(EngineFault, match="stopped before"):
            await text_of(stream)
        await client.close()


async def test_an_engine_of_another_epoch_is_not_the_one(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = EngineClient(str(harness.path), name="test", expected_epoch=EPOCH + 1)
        with pytest.raises(EngineDead, match=f"epoch {EPOCH} answered, not {EPOCH + 1}"):
            await client.connect()
        assert client.is_closed


async def test_nobody_there_is_a_dead_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineDead, match="no engine at"):
        await EngineClient(str(tmp_path / "none.sock"), name="test").connect()


async def test_too_many_connections_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "run", limits=Limits(max_connections=1)) as harness:
        client = await harness.client()
        with pytest.raises(EngineOverloaded, match="too many connections"):
            await harness.client()
        assert (await client.ping(5.0)).epoch == EPOCH
        await client.close()


async def test_a_prepare_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        task = asyncio.create_task(start(client, "r"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The same id is free again: the engine would close the connection otherwise.
        assert await text_of(await start(client, "r", max_tokens=3)) == "abc"
        await client.close()
