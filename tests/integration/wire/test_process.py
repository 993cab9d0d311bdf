"""``python -m engine_service`` as the agent runs it: readiness, signals, exit codes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apps.engines.client import ChatMessage, ChatPrompt, EngineClient, EngineStream, SamplingParams
from apps.engines.exceptions import EngineDead, EngineFault, EngineOverloaded
from tests.integration.wire.harness import text_of
from tests.models import ROOT, random_llama_dir
from tests.waiting import wait_until_async

START_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"))


@contextmanager
def engine_process(
    model_dir: Path, socket: Path, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "engine_service", "--model", str(model_dir)]
    command += ["--socket", str(socket), "--epoch", "3", "--threads", "1", *options]
    with socket.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def connected(socket: Path, process: subprocess.Popen[bytes]) -> EngineClient:
    async def connect() -> EngineClient | None:
        assert process.poll() is None, socket.with_suffix(".log").read_text()
        client = EngineClient(str(socket), name="test", expected_epoch=3)
        try:
            await client.connect()
        except EngineDead:
            return None
        return client

    client = await wait_until_async("the engine to answer", connect, timeout_s=START_TIMEOUT_S)
    assert client is not None
    return client


async def start(client: EngineClient, request_id: str) -> EngineStream:
    prepared = await client.prepare(
        request_id=request_id,
        prompt=ChatPrompt(messages=(ChatMessage(role="user", content=f"tell {request_id}"),)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_tokens=None,
        cache_salt="",
        timeout_s=10.0,
    )
    return await client.start(request_id, prepared.max_new_tokens)


async def exit_code(process: subprocess.Popen[bytes], *, timeout_s: float = 15.0) -> int:
    await wait_until_async("the exit", lambda: process.poll() is not None, timeout_s=timeout_s)
    return process.wait()


async def test_sigterm_drains_and_leaves_nothing(model_dir: Path, tmp_path: Path) -> None:
    socket = tmp_path / "run" / "e.sock"
    socket.parent.mkdir(mode=0o700)
    with engine_process(model_dir, socket, "--drain-s", "30") as process:
        client = await connected(socket, process)
        assert (client.info.pid, client.info.epoch) == (process.pid, 3)
        streams = [await start(client, f"r{i}") for i in range(8)]
        await anext(streams[-1])
        process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return (await client.ping(5.0)).draining

        await wait_until_async("draining", draining)
        with pytest.raises(EngineOverloaded, match="stopping"):
            await start(client, "late")
        await asyncio.gather(*(text_of(stream) for stream in streams))
        for stream in streams:
            assert stream.result is not None
            assert stream.result.finish_reason == "length"
            assert (
                stream.result.n_prompt_tokens + stream.result.n_completion_tokens
                == client.info.max_model_len
            )
        assert await exit_code(process) == 0
        assert list(socket.parent.glob("*.sock")) == []
        assert client.is_closed


async def test_the_grace_ends_and_the_exit_is_clean(model_dir: Path, tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket, "--drain-s", "0") as process:
        client = await connected(socket, process)
        streams = [await start(client, f"r{i}") for i in range(16)]
        await anext(streams[0])
        process.send_signal(signal.SIGTERM)
        with pytest.raises(EngineFault, match="stopped before"):
            await text_of(streams[-1])
        assert await exit_code(process) == 0
        assert not socket.exists()


async def test_a_second_sigterm_exits_at_once(model_dir: Path, tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket, "--drain-s", "60") as process:
        client = await connected(socket, process)
        streams = [await start(client, f"r{i}") for i in range(32)]
        await anext(streams[0])
        process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return (await client.ping(5.0)).draining

        await wait_until_async("draining", draining)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process, timeout_s=3.0) == 143
        assert not socket.exists()
        with pytest.raises(EngineDead):
            await text_of(streams[-1])


async def test_it_ends_with_its_parent(model_dir: Path, tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket, "--exit-with-parent") as process:
        client = await connected(socket, process)
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert await exit_code(process) == 0
        assert not socket.exists()
        assert client.is_closed


async def test_a_killed_engine_ends_every_stream_and_is_replaced(
    model_dir: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket) as process:
        client = await connected(socket, process)
        streams = [await start(client, f"r{i}") for i in range(16)]
        await anext(streams[0])
        process.kill()
        for stream in streams:
            with pytest.raises(EngineDead):
                await asyncio.wait_for(text_of(stream), 2.0)
        assert socket.exists()
    with engine_process(model_dir, socket) as process:
        client = await connected(socket, process)
        health = await client.ping(5.0)
        assert health.n_blocks_free == health.n_blocks_total > 0
        await client.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--model", "/nonexistent"), "/nonexistent"),
        (("--max-model-len", "100000"), "beyond the model's context"),
        (("--block-size", "none"), "invalid int value"),
    ],
)
async def test_what_is_configured_wrongly_is_said_in_one_line(
    model_dir: Path, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket, *options) as process:
        assert await exit_code(process, timeout_s=START_TIMEOUT_S) == os.EX_CONFIG == 78
    (line,) = [x for x in socket.with_suffix(".log").read_text().splitlines() if " ERROR " in x]
    assert "cannot start: " in line
    assert reason in line
    assert "Traceback" not in socket.with_suffix(".log").read_text()


async def test_a_socket_in_use_is_left_to_its_owner(model_dir: Path, tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket) as process:
        client = await connected(socket, process)
        with engine_process(model_dir, socket) as second:
            assert await exit_code(second, timeout_s=START_TIMEOUT_S) == 69
        assert (await client.ping(5.0)).epoch == 3
        await client.close()
