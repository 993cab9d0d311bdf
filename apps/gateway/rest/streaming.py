"""Server-sent events: a generation as the chunks that clients of an API know."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import msgspec
from django.http import StreamingHttpResponse

from apps.core.exceptions import AppError
from apps.core.json_lines import one_line
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


class Recorder(Protocol):
    """Takes what is sent. ``end`` gets the last part before it goes out; ``aclose`` is called once
    nothing more will, also where there was no such end."""

    def recorded(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]: ...

    async def end(self, last: bytes) -> None: ...

    async def aclose(self) -> None: ...


def event(data: object) -> bytes:
    return b"data: " + one_line(_encode(data)) + b"\n\n"


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
        self._chunks = chunks
        self._recorder: Recorder | None = None

    def record(self, recorder: Recorder) -> None:
        """Have it recorded; to be called before anything is sent."""
        self._recorder = recorder
        parts = events(self._stream, self._chunks, before_last=recorder.end)
        self.streaming_content = recorder.recorded(parts)

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if self._recorder is not None:
                await self._recorder.aclose()


async def events(
    stream: Stream,
    chunks: Chunks,
    *,
    before_last: Callable[[bytes], Awaitable[None]] | None = None,
) -> AsyncIterator[bytes]:
    """Yield the body. An error after the start is an event of its own, before the same end.

    before_last: gets the last part of a body that ends well, before it is yielded.
    """
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
    last = begin + chunks.end(stream.result)
    if before_last is not None:
        await before_last(last)
    yield last
