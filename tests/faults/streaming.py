"""Raw streaming clients for fault tests: what a real library hides (half-read bodies, stalled
sockets, the exact order of events) is what these are about."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.serve import RunningProduct


@dataclass(slots=True)
class Transcript:
    """The status and the ``data:`` lines of one event stream."""

    status: int
    events: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [event["error"] for event in self.events if "error" in event]

    @property
    def finish_reasons(self) -> list[str]:
        return [
            choice["finish_reason"]
            for event in self.events
            for choice in event.get("choices", ())
            if choice["finish_reason"] is not None
        ]


def request_bytes(product: RunningProduct, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {product.host}\r\n"
        f"Authorization: Bearer {product.api_token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + payload


def long_answer(product: RunningProduct, *, n_tokens: int, stream: bool = True) -> dict[str, Any]:
    """A body whose answer is exactly ``n_tokens`` long, unless somebody ends it."""
    return {
        "model": product.model,
        "messages": [{"role": "user", "content": "Tell me a long story about the sea."}],
        "max_tokens": n_tokens,
        "temperature": 1.0,
        "ignore_eos": True,
        "stream": stream,
    }


@contextlib.asynccontextmanager
async def connection(
    product: RunningProduct, body: dict[str, Any], *, receive_buffer: int | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request on a connection of its own; leaving the block drops it without a word."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (product.host, product.port))
    limit = {} if receive_buffer is None else {"limit": receive_buffer}
    reader, writer = await asyncio.open_connection(sock=sock, **limit)
    try:
        writer.write(request_bytes(product, body))
        yield reader
    finally:
        writer.transport.abort()


async def read_stream(
    reader: asyncio.StreamReader, started: asyncio.Event | None = None
) -> Transcript:
    """Read events to the end of the body; ``started`` is set at the first one with text."""
    status = await reader.readline()
    transcript = Transcript(status=int(status.split()[1]))
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            transcript.is_done = True
            continue
        transcript.events.append(json.loads(line[6:]))
        has_text = any(c["delta"].get("content") for c in transcript.events[-1].get("choices", ()))
        if has_text and started is not None:
            started.set()
    return transcript
