"""The platform's end of an engine's socket, and the only speaker of the wire protocol there.

Pure asyncio: no Django. A client that was closed or lost stays so; its owner may make a new one.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from apps.engines.answers import Answers
from apps.engines.exceptions import (
    EngineClientError,
    EngineDead,
    EngineOverloaded,
    EngineRequestError,
    EngineUnresponsive,
    engine_client_error,
)
from apps.engines.stream import EngineStream
from apps.engines.types import (
    EmbeddingResult,
    EngineHealth,
    EngineInfo,
    GenerationResult,
    PreparedRequest,
    StepStats,
)
from engine_service import protocol
from engine_service.protocol import (
    ChatMessage,
    ChatPrompt,
    EmbedInput,
    FrameError,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
)

# Callers build prompts from these; the rest of the protocol stays in here.
__all__ = ["ChatMessage", "ChatPrompt", "EmbedInput", "EngineClient", "EngineStream"]
__all__ += ["Prompt", "SamplingParams", "Standing", "TextPrompt", "TokenPrompt"]

VERSION: Final = protocol.PROTOCOL_VERSION
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024

K = TypeVar("K", str, int)
V = TypeVar("V")


class EngineClient:
    """One connection, shared by any number of requests of one event loop."""

    def __init__(self, socket_path: str, *, name: str, expected_epoch: int | None = None) -> None:
        self._socket_path = socket_path
        self._name = name
        self._expected_epoch = expected_epoch
        self._info: EngineInfo | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._lost: EngineDead | None = None
        self._nonces = itertools.count(1)
        self._prepares: Answers[str, PreparedRequest] = Answers()
        self._streams: dict[str, EngineStream] = {}
        self._embeds: Answers[str, protocol.Embedded] = Answers()
        self._pings: Answers[int, protocol.Pong] = Answers()
        self._purges: Answers[int, protocol.Purged] = Answers()

    @property
    def is_closed(self) -> bool:
        """True once nothing more can be sent: never connected, closed or lost."""
        return self._writer is None

    @property
    def info(self) -> EngineInfo:
        """Who answered; raises EngineDead before ``connect``."""
        if self._info is None:
            raise EngineDead("not connected to an engine")
        return self._info

    async def connect(self, *, timeout_s: float = 5.0) -> EngineInfo:
        """Connect and shake hands.

        Raises:
            EngineUnresponsive: nothing answered in time.
            EngineDead: nobody listens, or it is not the engine that was expected.
            EngineOverloaded: it has too many connections.
        """
        if self._lost is not None or self._writer is not None:
            raise EngineDead("a client connects once")
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._socket_path)
                hello = protocol.Hello(protocol_version=VERSION, client=self._name)
                writer.write(protocol.encode_frame(hello))
                self._info = self._welcomed(await _read_message(reader))
        except TimeoutError as error:
            raise EngineUnresponsive(f"no answer at {self._socket_path}") from error
        except (OSError, asyncio.IncompleteReadError, FrameError) as error:
            raise EngineDead(f"no engine at {self._socket_path}: {error}") from error
        finally:
            if self._info is None and writer is not None:
                writer.transport.abort()
        self._writer = writer
        self._reader_task = asyncio.create_task(self._read(reader))
        return self._info

    async def close(self) -> None:
        """Close; every request on this connection ends with EngineDead. Idempotent."""
        self._lose("the connection was closed here")
        if self._reader_task is not None:
            await asyncio.wait({self._reader_task})

    # -- requests ----------------------------------------------------------------------------

    async def prepare(
        self,
        *,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams,
        max_tokens: int | None,
        cache_salt: str,
        timeout_s: float,
        standing: Standing = protocol.NO_STANDING,
        cache_tags: tuple[str, ...] = (),
    ) -> PreparedRequest:
        """Have the prompt tokenized and everything validated; ``start`` or ``discard`` follows.

        Raises:
            EngineRequestError, EngineOverloaded, EngineFault, EngineUnresponsive, EngineDead
        """
        self._check_unused(request_id)
        frame = _encode_request(
            protocol.Prepare(
                request_id=request_id,
                prompt=prompt,
                sampling=sampling,
                max_tokens=max_tokens,
                cache_salt=cache_salt,
                standing=standing,
                cache_tags=cache_tags,
            )
        )
        try:
            return await self._ask(
                self._prepares, request_id, frame, timeout_s=timeout_s, what="prepare a prompt"
            )
        except (EngineUnresponsive, asyncio.CancelledError):
            self.discard(request_id)
            raise

    async def embed(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> EmbeddingResult:
        """Have a vector made of each input, ``MAX_EMBED_INPUTS`` at most.

        Raises:
            EngineRequestError, EngineOverloaded, EngineFault, EngineUnresponsive, EngineDead
        """
        self._check_unused(request_id)
        frame = _encode_request(protocol.Embed(request_id=request_id, inputs=tuple(inputs)))
        try:
            embedded = await self._ask(
                self._embeds, request_id, frame, timeout_s=timeout_s, what="embed the inputs"
            )
        except (EngineUnresponsive, asyncio.CancelledError):
            self.discard(request_id)
            raise
        return EmbeddingResult(vectors=embedded.vectors, n_prompt_tokens=embedded.n_prompt_tokens)

    async def start(self, request_id: str, max_new_tokens: int) -> EngineStream:
        """Run a prepared request. Raises EngineDead; every other error comes by the stream."""
        self._check_open()
        stream = EngineStream(request_id, send_abort=self.discard, forget=self._streams.pop)
        self._streams[request_id] = stream
        self._send(protocol.Start(request_id=request_id, max_new_tokens=max_new_tokens))
        return stream

    def discard(self, request_id: str) -> None:
        """Tell the engine to drop a request, in whatever state it is; never waits or raises."""
        self._send(protocol.Abort(request_id=request_id))

    async def ping(self, timeout_s: float) -> EngineHealth:
        """Make a round trip through the step loop. Raises EngineUnresponsive, EngineDead."""
        nonce = next(self._nonces)
        sent_at = time.monotonic()
        frame = protocol.encode_frame(protocol.Ping(nonce=nonce))
        pong = await self._ask(
            self._pings, nonce, frame, timeout_s=timeout_s, what="answer by its step loop"
        )
        stats = msgspec.structs.asdict(pong.stats)
        steps = stats.pop("steps")
        return EngineHealth(
            epoch=pong.epoch,
            draining=pong.draining,
            round_trip_s=time.monotonic() - sent_at,
            steps=steps and msgspec.convert(steps, StepStats, from_attributes=True),
            **stats,
        )

    async def purge(self, tag: str, *, timeout_s: float) -> int:
        """Have the engine forget what its prefix cache keeps of requests with ``tag`` in their
        ``cache_tags``; return how many blocks. Raises EngineUnresponsive, EngineDead."""
        nonce = next(self._nonces)
        frame = protocol.encode_frame(protocol.Purge(nonce=nonce, tag=tag))
        purged = await self._ask(
            self._purges, nonce, frame, timeout_s=timeout_s, what="purge a tag"
        )
        return purged.n_blocks

    async def _ask(
        self, answers: Answers[K, V], key: K, frame: bytes, *, timeout_s: float, what: str
    ) -> V:
        self._check_open()
        answer = answers.expect(key)
        self._write(frame)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise EngineUnresponsive(f"the engine did not {what} in {timeout_s:g} s") from error
        finally:
            answers.forget(key)

    def _check_unused(self, request_id: str) -> None:
        if any(request_id in used for used in (self._prepares, self._streams, self._embeds)):
            raise ValueError(f"request id {request_id!r} is in use")

    # -- frames ------------------------------------------------------------------------------

    def _welcomed(self, message: protocol.FromEngine) -> EngineInfo:
        if isinstance(message, protocol.Failed):
            error = _to_exception(message.error)
            raise error if isinstance(error, EngineOverloaded) else EngineDead(str(error))
        if not isinstance(message, protocol.Welcome):
            raise EngineDead("the engine did not answer a greeting with a welcome")
        if message.protocol_version != VERSION:
            raise EngineDead(f"the engine speaks protocol version {message.protocol_version}")
        if self._expected_epoch not in (None, message.epoch):
            raise EngineDead(f"epoch {message.epoch} answered, not {self._expected_epoch}")
        fields = msgspec.structs.asdict(message)
        del fields["protocol_version"]
        return EngineInfo(**fields)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "the connection to the engine failed"
        try:
            while True:
                self._dispatch(await _read_message(reader))
        except asyncio.IncompleteReadError:
            reason = "the engine closed the connection"
        except (OSError, FrameError) as error:
            reason = f"{reason}: {error}"
        finally:
            self._lose(reason)

    def _dispatch(self, message: protocol.FromEngine) -> None:
        match message:
            case protocol.StepOutputs() if message.epoch == self.info.epoch:
                self._step_outputs(message)
            case protocol.Pong() if message.epoch == self.info.epoch:
                self._pings.give(message.nonce, message)
            case protocol.Purged() if message.epoch == self.info.epoch:
                self._purges.give(message.nonce, message)
            case protocol.Prepared():
                prepared = PreparedRequest(
                    n_prompt_tokens=message.n_prompt_tokens, max_new_tokens=message.max_new_tokens
                )
                self._prepares.give(message.request_id, prepared)
            case protocol.Embedded():
                self._embeds.give(message.request_id, message)
            case protocol.Failed(request_id=str(request_id)):
                self._prepares.refuse(request_id, _to_exception(message.error))
                self._embeds.refuse(request_id, _to_exception(message.error))
            case protocol.Failed():
                raise FrameError(message.error.message)
            case protocol.Welcome():
                raise FrameError("a second welcome")

    def _step_outputs(self, message: protocol.StepOutputs) -> None:
        for delta in message.deltas:
            if (stream := self._streams.get(delta.request_id)) is not None:
                stream.push(delta.text, n_tokens=delta.n_tokens)
        for finished in message.finished:
            if (stream := self._streams.pop(finished.request_id, None)) is not None:
                result = GenerationResult(
                    finish_reason=finished.finish_reason,
                    n_prompt_tokens=finished.n_prompt_tokens,
                    n_cached_tokens=finished.n_cached_tokens,
                    n_completion_tokens=finished.n_completion_tokens,
                )
                stream.finish(result, text=finished.text)
        for failed in message.failed:
            if (stream := self._streams.pop(failed.request_id, None)) is not None:
                stream.fail(
                    _to_exception(failed.error, n_completion_tokens=failed.n_completion_tokens)
                )

    def _send(self, message: protocol.Message) -> None:
        self._write(protocol.encode_frame(message))

    def _write(self, frame: bytes) -> None:
        if self._writer is None:
            return  # lost just now: whatever waited has been told
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._lose("the engine does not read")

    def _check_open(self) -> None:
        if self._writer is None:
            raise EngineDead(str(self._lost or "not connected to an engine"))

    def _lose(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = EngineDead(reason)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()
        self._prepares.refuse_all(lambda: EngineDead(reason))
        self._embeds.refuse_all(lambda: EngineDead(reason))
        self._pings.refuse_all(lambda: EngineDead(reason))
        self._purges.refuse_all(lambda: EngineDead(reason))
        for stream in self._streams.values():
            stream.fail(EngineDead(reason))
        self._streams.clear()


async def _read_message(reader: asyncio.StreamReader) -> protocol.FromEngine:
    length = protocol.frame_length(await reader.readexactly(protocol.HEADER.size))
    return protocol.decode_from_engine(await reader.readexactly(length))


def _encode_request(message: protocol.Prepare | protocol.Embed) -> bytes:
    """Encode what came from outside; the engine closes a connection over a bad frame, so no
    request may make one.

    Raises:
        EngineRequestError: it cannot be put in a frame of this protocol.
    """
    try:
        frame = protocol.encode_frame(message)
        protocol.decode_to_engine(frame[protocol.HEADER.size :])
    except (FrameError, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise EngineRequestError(
            f"The request cannot be passed on: {error}", code="invalid_value", param=None
        ) from error
    return frame


def _to_exception(error: protocol.WireError, *, n_completion_tokens: int = 0) -> EngineClientError:
    return engine_client_error(
        **msgspec.structs.asdict(error), n_completion_tokens=n_completion_tokens
    )
