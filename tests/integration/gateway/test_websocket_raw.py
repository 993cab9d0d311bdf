"""/v1/stream and frames that no library would send: compressed, oversized, in endless pieces."""

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from apps.rbac.models import ApiToken
from tests.integration.gateway.conftest import chat
from tests.processes import ServerRun

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10
RSV1 = 0x40
MAX_BYTES = 4 * 1024 * 1024
PART = b"x" * 1024 * 1024


def head(opcode: int, n_bytes: int, *, flags: int = 0, is_last: bool = True) -> bytes:
    """Return the head of a client's frame whose mask changes nothing."""
    first = (0x80 if is_last else 0) | flags | opcode
    if n_bytes < 126:
        length = bytes([0x80 | n_bytes])
    elif n_bytes < 1 << 16:
        length = b"\xfe" + n_bytes.to_bytes(2)
    else:
        length = b"\xff" + n_bytes.to_bytes(8)
    return bytes([first]) + length + bytes(4)


def framed(opcode: int, payload: bytes, *, flags: int = 0, is_last: bool = True) -> bytes:
    return head(opcode, len(payload), flags=flags, is_last=is_last) + payload


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection after its handshake. ready: its first frame."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: bytes
    ready: dict[str, Any] = field(default_factory=dict)

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame of the server's, not longer than 64 KiB."""
        async with asyncio.timeout(10):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2))
            return first & 0x0F, await self.reader.readexactly(length)

    async def json(self) -> Any:
        opcode, payload = await self.frame()
        assert opcode == TEXT, payload
        return json.loads(payload)

    async def closed_with(self) -> int:
        opcode, payload = await self.frame()
        assert opcode == CLOSE, payload
        return int.from_bytes(payload[:2])


@contextlib.asynccontextmanager
async def wire_of(
    server: ServerRun, token: ApiToken, *headers: str, query: str = ""
) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    lines = [
        f"GET /v1/stream{query} HTTP/1.1",
        f"Host: {server.host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Authorization: Bearer {token.secret}",
        *headers,
    ]
    try:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        wire = Wire(reader, writer, answer)
        wire.ready.update(await wire.json())
        assert wire.ready["type"] == "ready"
        yield wire
    finally:
        writer.transport.abort()


async def test_no_compression_is_agreed_on(server: ServerRun, token: ApiToken) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with wire_of(server, token, offer) as wire:
        assert b"sec-websocket-extensions" not in wire.answer.lower()
        wire.writer.write(framed(TEXT, b'{"type": "ping", "nonce": 1}'))
        assert await wire.json() == {"type": "pong", "nonce": 1}


async def test_a_compressed_message_is_refused_and_not_inflated(
    server: ServerRun, token: ApiToken
) -> None:
    before = server.rss_bytes()
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflate.compress(PART) for _ in range(200)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < MAX_BYTES / 16
    async with wire_of(server, token, "Sec-WebSocket-Extensions: permessage-deflate") as wire:
        wire.writer.write(framed(TEXT, bomb, flags=RSV1))
        assert await wire.closed_with() == 1002
    assert server.rss_bytes() - before < 30_000_000


async def test_a_message_in_pieces_is_bounded_by_their_sum(
    server: ServerRun, token: ApiToken
) -> None:
    async with wire_of(server, token) as wire:
        wire.writer.write(framed(TEXT, PART, is_last=False))
        for _ in range(3):
            wire.writer.write(framed(CONTINUATION, PART, is_last=False))
        # A ping among them is answered: the four are within the bound.
        wire.writer.write(framed(PING, b"still there?"))
        assert await wire.frame() == (PONG, b"still there?")
        wire.writer.write(framed(CONTINUATION, b"x", is_last=False))
        assert await wire.closed_with() == 1009


async def test_a_message_in_empty_pieces_is_bounded_by_their_number(
    server: ServerRun, token: ApiToken
) -> None:
    async with wire_of(server, token) as wire:
        ping = b'{"type": "ping", "nonce": 1}'
        rest = framed(CONTINUATION, b"", is_last=False) * 4094
        wire.writer.write(framed(TEXT, ping, is_last=False) + rest + framed(CONTINUATION, b""))
        assert await wire.json() == {"type": "pong", "nonce": 1}
        wire.writer.write(framed(TEXT, ping, is_last=False) + rest)
        wire.writer.write(framed(CONTINUATION, b"", is_last=False) * 2)
        assert await wire.closed_with() == 1009


@pytest.mark.parametrize("n_bytes", [MAX_BYTES + 1, 1 << 40])
async def test_a_size_over_the_bound_is_refused_when_it_is_announced(
    server: ServerRun, token: ApiToken, n_bytes: int
) -> None:
    async with wire_of(server, token) as wire:
        wire.writer.write(head(TEXT, n_bytes))
        assert await wire.closed_with() == 1009


async def test_a_message_of_the_largest_size_is_taken(server: ServerRun, token: ApiToken) -> None:
    async with wire_of(server, token) as wire:
        ping = b'{"type": "ping", "nonce": 1}'
        wire.writer.write(framed(TEXT, ping.ljust(MAX_BYTES)))
        assert await wire.json() == {"type": "pong", "nonce": 1}


async def test_what_breaks_the_protocol_ends_that_connection_only(
    server: ServerRun, token: ApiToken
) -> None:
    async with wire_of(server, token) as other:
        for wrong, code in (
            (b"\x81\x02hi", 1002),  # not masked
            (framed(3, b""), 1002),  # an opcode that means nothing
            (framed(CONTINUATION, b"x"), 1002),  # of no message
            (framed(PING, b"x", is_last=False), 1002),
            (framed(TEXT, b"\xff\xfe"), 1007),
        ):
            async with wire_of(server, token) as wire:
                wire.writer.write(wrong)
                assert await wire.closed_with() == code, wrong
        other.writer.write(framed(TEXT, b'{"type": "ping", "nonce": 2}'))
        assert await other.json() == {"type": "pong", "nonce": 2}


async def test_a_close_without_a_code_keeps_a_session(server: ServerRun, token: ApiToken) -> None:
    async with wire_of(server, token, query="?resume=5") as wire:
        start = {"type": "start", "id": "c1", **chat()}
        wire.writer.write(framed(TEXT, json.dumps(start).encode()))
        started = await wire.json()
        wire.writer.write(framed(CLOSE, b""))
        session = wire.ready["session"]
    async with wire_of(server, token, query=f"?session={session}&last_event=0") as wire:
        assert wire.ready["session"] == session
        assert await wire.json() == started
