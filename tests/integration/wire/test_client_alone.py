"""The client against an engine that is scripted by hand, to see what it makes of odd answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from apps.engines import client as client_module
from apps.engines.client import EngineClient, SamplingParams, TextPrompt
from apps.engines.exceptions import EngineDead, EngineUnresponsive
from engine_service.protocol import (
    PROTOCOL_VERSION,
    Abort,
    EngineStats,
    Finished,
    Message,
    Pong,
    Prepared,
    StepOutputs,
    ToEngine,
    Welcome,
    decode_to_engine,
    encode_frame,
    frame_length,
)
from tests.integration.wire.harness import start, text_of

WELCOME = Welcome(
    protocol_version=PROTOCOL_VERSION,
    epoch=1,
    pid=1,
    model="m",
    architecture="a",
    dtype="float32",
    device="cpu",
    kernels="none",
    backend="scripted",
    vocab_size=10,
    max_model_len=10,
    block_size=1,
    n_blocks=10,
    max_sequences=1,
)


class ScriptedEngine:
    """Reads and sends single messages on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> ToEngine:
        length = frame_length(await self.reader.readexactly(4))
        return decode_to_engine(await self.reader.readexactly(length))

    async def send(self, *messages: Message) -> None:
        self.writer.write(b"".join(encode_frame(message) for message in messages))
        await self.writer.drain()


@asynccontextmanager
async def scripted(
    path: Path, script: Callable[[ScriptedEngine], Awaitable[None]]
) -> AsyncIterator[EngineClient]:
    """Run ``script`` for the one connection of the client that is given; it must end by itself."""
    played: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(ScriptedEngine(reader, writer))
        except BaseException as error:
            played.set_exception(error)
        else:
            played.set_result(None)

    server = await asyncio.start_unix_server(serve, path)
    client = EngineClient(str(path), name="test")
    yield client
    await asyncio.wait_for(played, 5.0)
    await client.close()
    server.close()


def finished(request_id: str, text: str) -> Finished:
    return Finished(
        request_id=request_id,
        finish_reason="stop",
        n_prompt_tokens=1,
        n_cached_tokens=0,
        n_completion_tokens=1,
        text=text,
    )


async def test_frames_of_another_epoch_are_dropped(tmp_path: Path) -> None:
    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        await engine.send(WELCOME)
        await engine.read()
        await engine.send(Prepared(request_id="r", n_prompt_tokens=1, max_new_tokens=9))
        await engine.read()
        await engine.send(
            StepOutputs(epoch=2, finished=(finished("r", "stale"),)),
            StepOutputs(epoch=1, finished=(finished("nobody's", "lost"),)),
            StepOutputs(epoch=1, finished=(finished("r", "fresh"),)),
        )
        nonce = msgspec.structs.asdict(await engine.read())["nonce"]
        await engine.send(
            Pong(nonce=nonce, epoch=2, stats=EngineStats(n_running=2)),
            Pong(nonce=nonce + 1, epoch=1, stats=EngineStats(n_running=3)),
            Pong(nonce=nonce, epoch=1, stats=EngineStats(n_running=1)),
        )

    async with scripted(tmp_path / "s", script) as client:
        await client.connect()
        assert await text_of(await start(client, "r")) == "fresh"
        assert (await client.ping(5.0)).n_running == 1


async def test_a_prepare_without_an_answer_times_out_and_is_dropped(tmp_path: Path) -> None:
    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        await engine.send(WELCOME)
        await engine.read()
        assert await engine.read() == Abort(request_id="r")
        # Too late: the client must survive it.
        await engine.send(Prepared(request_id="r", n_prompt_tokens=1, max_new_tokens=9))
        nonce = msgspec.structs.asdict(await engine.read())["nonce"]
        await engine.send(Pong(nonce=nonce, epoch=1, stats=EngineStats()))

    async with scripted(tmp_path / "s", script) as client:
        await client.connect()
        with pytest.raises(EngineUnresponsive):
            await client.prepare(
                request_id="r",
                prompt=TextPrompt(text="x"),
                sampling=SamplingParams(),
                max_tokens=1,
                cache_salt="",
                timeout_s=0.02,
            )
        assert (await client.ping(5.0)).epoch == 1


async def test_an_engine_that_does_not_greet_is_unresponsive(tmp_path: Path) -> None:
    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        assert await engine.reader.read() == b""

    async with scripted(tmp_path / "s", script) as client:
        with pytest.raises(EngineUnresponsive):
            await client.connect(timeout_s=0.02)
        assert client.is_closed


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (encode_frame(msgspec.structs.replace(WELCOME, protocol_version=9)), "version 9"),
        (encode_frame(StepOutputs(epoch=1)), "did not answer a greeting"),
        (b"\x00\x00\x00\x01\xc1", "no engine at"),
        (b"", "no engine at"),
    ],
)
async def test_what_is_no_engine_is_refused(tmp_path: Path, answer: bytes, reason: str) -> None:
    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        engine.writer.write(answer)
        engine.writer.close()

    async with scripted(tmp_path / "s", script) as client:
        with pytest.raises(EngineDead, match=reason):
            await client.connect()


async def test_garbage_from_the_engine_ends_everything(tmp_path: Path) -> None:
    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        await engine.send(WELCOME)
        await engine.read()
        engine.writer.write(b"\x00\x00\x00\x02\xc1\xc1")
        await engine.writer.drain()

    async with scripted(tmp_path / "s", script) as client:
        await client.connect()
        with pytest.raises(EngineDead, match="failed"):
            await client.ping(5.0)
        assert client.is_closed


async def test_an_engine_that_does_not_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_UNSENT_BYTES", 100_000)
    stop = asyncio.Event()

    async def script(engine: ScriptedEngine) -> None:
        await engine.read()
        await engine.send(WELCOME)
        await stop.wait()

    async with scripted(tmp_path / "s", script) as client:
        await client.connect()
        with pytest.raises(EngineDead, match="does not read"):
            for i in range(50):
                await start(client, f"r{i}", text="x" * 1_000_000)
        assert client.is_closed
        stop.set()
