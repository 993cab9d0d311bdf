"""Server-sent events: one generation as the chunks that clients of the API know."""

from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec
from django.http import StreamingHttpResponse

from apps.core.exceptions import AppError
from apps.gateway.generation import GenerationStream
from apps.gateway.rest import wire

KEEP_ALIVE_S: Final = 15.0
# Sent first, because the server holds the headers back until there is a body.
COMMENT: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class Chunks(Protocol):
    """How one endpoint words its chunks. ``first`` is sent before the first text."""

    first: bytes

    def text(self, text: str) -> bytes: ...

    def finish(self, finish_reason: str) -> bytes: ...

    def usage(self, usage: wire.Usage) -> bytes: ...


class ChatChunks:
    def __init__(self, stream: GenerationStream, *, include_usage: bool) -> None:
        self._stream = stream
        self._usage: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET
        self.first = self._choice(wire.ChunkDelta(role="assistant", content=""))

    def text(self, text: str) -> bytes:
        return self._choice(wire.ChunkDelta(content=text))

    def finish(self, finish_reason: str) -> bytes:
        return self._choice(wire.ChunkDelta(), finish_reason=finish_reason)

    def usage(self, usage: wire.Usage) -> bytes:
        return self._chunk((), usage=usage)

    def _choice(self, delta: wire.ChunkDelta, *, finish_reason: str | None = None) -> bytes:
        choice = wire.ChunkChoice(delta=delta, finish_reason=finish_reason)
        return self._chunk((choice,), usage=self._usage)

    def _chunk(
        self,
        choices: tuple[wire.ChunkChoice, ...],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
    ) -> bytes:
        return event(
            wire.ChatCompletionChunk(
                id=self._stream.request_id,
                object=wire.CHUNK,
                created=self._stream.created,
                model=self._stream.model,
                system_fingerprint=self._stream.system_fingerprint,
                choices=choices,
                usage=usage,
            )
        )


class TextChunks:
    def __init__(self, stream: GenerationStream, *, include_usage: bool) -> None:
        self._stream = stream
        self._usage: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET
        self.first = b""

    def text(self, text: str) -> bytes:
        return self._chunk((wire.TextChoice(text=text),), usage=self._usage)

    def finish(self, finish_reason: str) -> bytes:
        choice = wire.TextChoice(text="", finish_reason=finish_reason)
        return self._chunk((choice,), usage=self._usage)

    def usage(self, usage: wire.Usage) -> bytes:
        return self._chunk((), usage=usage)

    def _chunk(
        self,
        choices: tuple[wire.TextChoice, ...],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
    ) -> bytes:
        return event(
            wire.Completion(
                id=self._stream.request_id,
                object=wire.TEXT,
                created=self._stream.created,
                model=self._stream.model,
                system_fingerprint=self._stream.system_fingerprint,
                choices=choices,
                usage=usage,
            )
        )


def event(data: object) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"


class EventStreamResponse(StreamingHttpResponse):
    """Whoever gets it must ``aclose`` it, sent or not: it holds a running generation."""

    def __init__(self, stream: GenerationStream, chunks: Chunks, *, include_usage: bool) -> None:
        super().__init__(
            events(stream, chunks, include_usage=include_usage),
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()


async def events(
    stream: GenerationStream, chunks: Chunks, *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the body. An error after the start is an event of its own, before the same end."""
    yield COMMENT
    try:
        async with stream:
            begin = chunks.first
            while (delta := await stream.take(wait_s=KEEP_ALIVE_S)) is not None:
                if not delta.text:
                    yield COMMENT
                    continue
                yield begin + chunks.text(delta.text)
                begin = b""
    except AppError as error:
        yield event(error.body()) + DONE
        return
    result = stream.result
    assert result is not None
    end = begin + chunks.finish(result.finish_reason)
    if include_usage:
        end += chunks.usage(wire.usage_of(result))
    yield end + DONE
