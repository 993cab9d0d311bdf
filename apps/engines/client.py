"""The platform's end of an engine's socket, and the only speaker of the wire protocol there.

Pure asyncio: no Django. A client that was closed or lost stays so; its owner may make a new one.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Final, TypeVar

from apps.engines.answers import Answers
from apps.engines.exceptions import (
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineUnresponsive,
)
from apps.engines.health import EngineHealth
from apps.engines.stream import EngineStream
from apps.engines.translation import (
    MeasuredInputs,
    Question,
    answer_delta,
    encoded_question,
    engine_health,
    engine_info,
    generation_result,
    measured_inputs,
    to_exception,
)
from apps.engines.types import (
    EmbeddingResult,
    EngineInfo,
    PreparedRequest,
    TokenizedPrompt,
)
from engine_service import protocol
from engine_service.protocol import (
    ChatMessage,
    ChatPrompt,
    EmbedInput,
    FrameError,
    OutputFormat,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolUse,
)

# Callers build prompts from these; the rest of the protocol stays in here.
__all__ = ["ChatMessage", "ChatPrompt", "EmbedInput", "EngineClient", "EngineStream"]
__all__ += [
    "MeasuredInputs",
    "OutputFormat",
    "Prompt",
    "SamplingParams",
    "Standing",
    "TextPrompt",
    "TokenPrompt",
]
__all__ += ["Tool", "ToolCall", "ToolUse"]

VERSION: Final = protocol.PROTOCOL_VERSION
MAX_EMBED_INPUTS: Final = protocol.MAX_EMBED_INPUTS
MAX_TOKENIZE_INPUTS: Final = protocol.MAX_TOKENIZE_INPUTS
MAX_TOP_LOGPROBS: Final = protocol.MAX_TOP_LOGPROBS
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
# What is read at once while the loop was busy elsewhere: at twice that many reading stops.
READ_BYTES: Final = 512 * 1024

Reply = protocol.Prepared | protocol.Embedded | protocol.TextAnswer
R = TypeVar("R", bound=Reply)
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
        self._replies: Answers[str, Reply] = Answers()
        self._streams: dict[str, EngineStream] = {}
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
                reader, writer = await asyncio.open_unix_connection(
                    self._socket_path, limit=READ_BYTES
                )
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
        output_format: OutputFormat | None = None,
        is_streamed: bool = True,
    ) -> PreparedRequest:
        """Have the prompt tokenized and everything validated; ``start`` or ``discard`` follows.

        is_streamed: someone reads it as it comes, which is how an engine makes it in any case.

        Raises:
            EngineRequestError, EngineOverloaded, EngineFault, EngineUnresponsive, EngineDead
        """
        question = protocol.Prepare(
            request_id=request_id,
            prompt=prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            cache_salt=cache_salt,
            standing=standing,
            cache_tags=cache_tags,
            output_format=output_format,
        )
        prepared = await self._reply(question, protocol.Prepared, timeout_s=timeout_s)
        return PreparedRequest(
            n_prompt_tokens=prepared.n_prompt_tokens, max_new_tokens=prepared.max_new_tokens
        )

    async def embed(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> EmbeddingResult:
        """Have a vector made of each input, ``MAX_EMBED_INPUTS`` at most.

        Raises:
            EngineRequestError, EngineOverloaded, EngineFault, EngineUnresponsive, EngineDead
        """
        question = protocol.Embed(request_id=request_id, inputs=tuple(inputs))
        embedded = await self._reply(question, protocol.Embedded, timeout_s=timeout_s)
        return EmbeddingResult(vectors=embedded.vectors, n_prompt_tokens=embedded.n_prompt_tokens)

    async def measure_inputs(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> MeasuredInputs:
        """Return the token ids of each input, which ``embed`` then takes; at most
        ``MAX_TOKENIZE_INPUTS``. Raises as ``embed`` does."""
        question = protocol.TokenizeInputs(request_id=request_id, inputs=tuple(inputs))
        answer = await self._reply(question, protocol.TokenizedInputs, timeout_s=timeout_s)
        return measured_inputs(answer)

    async def tokenize(
        self,
        *,
        request_id: str,
        prompt: ChatPrompt | TextPrompt,
        add_special_tokens: bool | None,
        with_strings: bool,
        timeout_s: float,
    ) -> TokenizedPrompt:
        """Return the token ids of a prompt of any length; raises as ``embed`` does.

        add_special_tokens: None as the model is served with, which is to text and not to a chat.
        """
        question = protocol.Tokenize(
            request_id=request_id,
            prompt=prompt,
            add_special_tokens=add_special_tokens,
            with_strings=with_strings,
        )
        answer = await self._reply(question, protocol.Tokenized, timeout_s=timeout_s)
        return TokenizedPrompt(token_ids=answer.token_ids, strings=answer.strings)

    async def detokenize(
        self, *, request_id: str, token_ids: Sequence[int], timeout_s: float
    ) -> str:
        """Return the text of token ids, special ones included; raises as ``embed`` does."""
        question = protocol.Detokenize(request_id=request_id, token_ids=tuple(token_ids))
        return (await self._reply(question, protocol.Detokenized, timeout_s=timeout_s)).text

    async def start(self, request_id: str, max_new_tokens: int) -> EngineStream:
        """Run a prepared request. Raises EngineDead; every other error comes by the stream."""
        self._check_open()
        stream = EngineStream(request_id, send_abort=self.discard, forget=self._streams.pop)
        stream.begin()
        self._streams[request_id] = stream
        self._send(protocol.Start(request_id=request_id, max_new_tokens=max_new_tokens))
        return stream

    def discard(self, request_id: str) -> None:
        """Tell the engine to drop a request, in whatever state it is; never waits or raises."""
        self._send(protocol.Abort(request_id=request_id))

    async def ping(self, timeout_s: float, *, may_hold_memory: bool | None = None) -> EngineHealth:
        """Make a round trip through the step loop. Raises EngineUnresponsive, EngineDead.

        may_hold_memory: for the agent alone, which tells an engine whose turn it is with the memory
        of a device that it shares.
        """
        nonce = next(self._nonces)
        sent_at = time.monotonic()
        frame = protocol.encode_frame(protocol.Ping(nonce=nonce, may_hold_memory=may_hold_memory))
        pong = await self._ask(
            self._pings, nonce, frame, timeout_s=timeout_s, what="answer by its step loop"
        )
        return engine_health(pong, round_trip_s=time.monotonic() - sent_at)

    async def purge(self, tag: str, *, timeout_s: float) -> int:
        """Have the engine forget what its prefix cache keeps of requests with ``tag`` in their
        ``cache_tags``; return how many blocks. Raises EngineUnresponsive, EngineDead."""
        nonce = next(self._nonces)
        frame = protocol.encode_frame(protocol.Purge(nonce=nonce, tag=tag))
        purged = await self._ask(
            self._purges, nonce, frame, timeout_s=timeout_s, what="purge a tag"
        )
        return purged.n_blocks

    async def _reply(self, question: Question, kind: type[R], *, timeout_s: float) -> R:
        """Ask what has one answer; one that nobody waits for any more is dropped."""
        request_id = question.request_id
        if request_id in self._replies or request_id in self._streams:
            raise ValueError(f"request id {request_id!r} is in use")
        frame = encoded_question(question)
        what = f"answer {type(question).__name__}"
        try:
            reply = await self._ask(
                self._replies, request_id, frame, timeout_s=timeout_s, what=what
            )
        except (EngineUnresponsive, asyncio.CancelledError):
            self.discard(request_id)
            raise
        if not isinstance(reply, kind):
            raise EngineFault("the engine answered another question")
        return reply

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

    # -- frames ------------------------------------------------------------------------------

    def _welcomed(self, message: protocol.FromEngine) -> EngineInfo:
        if isinstance(message, protocol.Failed):
            error = to_exception(message.error)
            raise error if isinstance(error, EngineOverloaded) else EngineDead(str(error))
        if not isinstance(message, protocol.Welcome):
            raise EngineDead("the engine did not answer a greeting with a welcome")
        if message.protocol_version != VERSION:
            raise EngineDead(f"the engine speaks protocol version {message.protocol_version}")
        if self._expected_epoch not in (None, message.epoch):
            raise EngineDead(f"epoch {message.epoch} answered, not {self._expected_epoch}")
        return engine_info(message)

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
            case protocol.Prepared() | protocol.Embedded() | protocol.Tokenized():
                self._replies.give(message.request_id, message)
            case protocol.TokenizedInputs() | protocol.Detokenized():
                self._replies.give(message.request_id, message)
            case protocol.Failed(request_id=str(request_id)):
                self._replies.refuse(request_id, to_exception(message.error))
            case protocol.Failed():
                raise FrameError(message.error.message)
            case protocol.Welcome():
                raise FrameError("a second welcome")

    def _step_outputs(self, message: protocol.StepOutputs) -> None:
        for delta in message.deltas:
            if (stream := self._streams.get(delta.request_id)) is not None:
                stream.push(answer_delta(delta))
        for finished in message.finished:
            if (stream := self._streams.pop(finished.request_id, None)) is not None:
                stream.finish(generation_result(finished), last=answer_delta(finished))
        for failed in message.failed:
            if (stream := self._streams.pop(failed.request_id, None)) is not None:
                stream.fail(
                    to_exception(failed.error, n_completion_tokens=failed.n_completion_tokens)
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
        self._replies.refuse_all(lambda: EngineDead(reason))
        self._pings.refuse_all(lambda: EngineDead(reason))
        self._purges.refuse_all(lambda: EngineDead(reason))
        for stream in self._streams.values():
            stream.fail(EngineDead(reason))
        self._streams.clear()


async def _read_message(reader: asyncio.StreamReader) -> protocol.FromEngine:
    length = protocol.frame_length(await reader.readexactly(protocol.HEADER.size))
    return protocol.decode_from_engine(await reader.readexactly(length))
