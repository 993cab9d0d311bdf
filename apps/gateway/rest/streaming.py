"""Server-sent events: a generation as the chunks that clients of an API know."""

from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec
from django.http import StreamingHttpResponse

from apps.core.exceptions import AppError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.merging import Stream

KEEP_ALIVE_S: Final = 15.0
# Sent first, because the server holds the headers back until there is a body.
COMMENT: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class Chunks(Protocol):
    """How one endpoint words a generation. ``start`` goes out with the first delta; whether it
    ends well or badly, there is one end."""

    def start(self) -> bytes: ...

    def delta(self, delta: AnswerDelta) -> bytes: ...

    def end(self, result: GenerationResult) -> bytes: ...

    def error(self, error: AppError) -> bytes: ...


def event(data: object) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"


def named_event(name: str, data: object) -> bytes:
    return b"event: " + name.encode() + b"\n" + event(data)


class EventStreamResponse(StreamingHttpResponse):
    """Whoever gets it must ``aclose`` it, sent or not: it holds a running generation."""

    def __init__(self, stream: Stream, chunks: Chunks) -> None:
        super().__init__(
            events(stream, chunks),
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()


async def events(stream: Stream, chunks: Chunks) -> AsyncIterator[bytes]:
    """Yield the body. An error after the start is an event of its own, before the same end."""
    yield COMMENT
    try:
        async with stream:
            begin = chunks.start()
            while (delta := await stream.take(wait_s=KEEP_ALIVE_S)) is not None:
                if delta.is_empty:
                    yield COMMENT
                    continue
                yield begin + chunks.delta(delta)
                begin = b""
    except AppError as error:
        yield chunks.error(error)
        return
    assert stream.result is not None
    yield begin + chunks.end(stream.result)
