"""A service with the echo backend on a real socket, and a peer that speaks raw frames."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.engines.client import EngineClient, EngineStream, SamplingParams, TextPrompt
from engine_service.engine import Engine
from engine_service.errors import EngineError
from engine_service.frontend import Frontend
from engine_service.journal import Journal
from engine_service.protocol import (
    HEADER,
    PROTOCOL_VERSION,
    FromEngine,
    Hello,
    Message,
    Welcome,
    decode_from_engine,
    encode_frame,
    frame_length,
)
from engine_service.server.limits import Limits
from engine_service.server.service import EngineService
from tests.integration.wire.echo import EchoBackend
from tests.unit.frontend.tokenizers import chat_tokenizer, model_info

EPOCH = 7


@dataclass
class Harness:
    path: Path
    backend: EchoBackend
    engine: Engine
    service: EngineService

    async def client(self) -> EngineClient:
        client = EngineClient(str(self.path), name="test", expected_epoch=EPOCH)
        await client.connect()
        return client

    async def peer(self) -> "RawPeer":
        """Connect and shake hands by hand."""
        peer = await RawPeer.connect(self.path)
        await peer.hello()
        return peer


@dataclass
class RawPeer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, path: Path) -> "RawPeer":
        return cls(*await asyncio.open_unix_connection(path))

    async def hello(self) -> None:
        await self.send(Hello(protocol_version=PROTOCOL_VERSION, client="raw"))
        assert isinstance(await self.read(), Welcome)

    async def send(self, *messages: Message) -> None:
        await self.send_bytes(b"".join(encode_frame(message) for message in messages))

    async def send_bytes(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, *, timeout_s: float = 5.0) -> FromEngine:
        async with asyncio.timeout(timeout_s):
            length = frame_length(await self.reader.readexactly(HEADER.size))
            return decode_from_engine(await self.reader.readexactly(length))

    async def is_closed(self, *, timeout_s: float = 5.0) -> bool:
        """Read until the end; True if it comes and nothing whole comes before it."""
        async with asyncio.timeout(timeout_s):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True


@asynccontextmanager
async def running(
    directory: Path,
    *,
    limits: Limits | None = None,
    max_model_len: int = 100_000,
    journal: Journal | None = None,
) -> AsyncIterator[Harness]:
    info = model_info(max_model_len=max_model_len)
    backend = EchoBackend(info)
    service = EngineService(
        frontend=Frontend(chat_tokenizer(), info),
        info=info,
        epoch=EPOCH,
        limits=limits,
        journal=journal,
    )
    engine = Engine(backend, on_outputs=service.on_outputs, max_inbox=256)
    engine.start()
    path = directory / "engine.sock"
    file = await service.listen(engine, path)
    try:
        yield Harness(path=path, backend=backend, engine=engine, service=service)
    finally:
        backend.steps.set()
        service.fail_all(EngineError("the test is over"))
        await service.close()
        engine.stop(timeout_s=5.0)
        file.remove()


async def start(
    client: EngineClient,
    request_id: str,
    *,
    text: str = "abc",
    max_tokens: int | None = None,
    cache_salt: str = "",
    **sampling: Any,
) -> EngineStream:
    prepared = await client.prepare(
        request_id=request_id,
        prompt=TextPrompt(text=text),
        sampling=SamplingParams(**sampling),
        max_tokens=max_tokens,
        cache_salt=cache_salt,
        timeout_s=5.0,
    )
    return await client.start(request_id, prepared.max_new_tokens)


async def text_of(stream: EngineStream) -> str:
    return "".join([delta.text async for delta in stream])
