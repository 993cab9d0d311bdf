"""A model server that does nothing: one answer to every request, at once.

    python -m benchmarks.gateway.upstream PORT

What gateways cost in front of it is their own. It reads no more of HTTP than where a request ends.
"""

import asyncio
import json
import sys
from typing import Final

MODEL: Final = "nothing"
_COMPLETION: Final = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there, how are you?"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17},
}
_MODELS: Final = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
_HEADERS_END: Final = b"\r\n\r\n"


def _answer(value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + _HEADERS_END + body


ANSWERS: Final = {b"POST": _answer(_COMPLETION), b"GET": _answer(_MODELS)}


class Upstream(asyncio.Protocol):
    """One connection; its requests come one after another."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        while (end := self._received.find(_HEADERS_END)) >= 0:
            head = self._received[:end]
            size = end + len(_HEADERS_END) + _content_length(head)
            if len(self._received) < size:
                return
            self._received = self._received[size:]
            self._transport.write(ANSWERS[head.partition(b" ")[0]])


def _content_length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0] or 0)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
