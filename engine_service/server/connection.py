"""One client's connection: framing, handshake and the order of messages that the protocol allows.

It decides nothing about the engine; what the client asks for goes to the service.
"""

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from engine_service.errors import EngineError, Overloaded, RequestError
from engine_service.frontend import PreparedPrompt
from engine_service.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Detokenize,
    Embed,
    Embedded,
    Failed,
    FailedRequest,
    FrameError,
    Hello,
    Message,
    Ping,
    Prepare,
    Prepared,
    Purge,
    Start,
    StepOutputs,
    TextQuestion,
    ToEngine,
    Tokenize,
    TokenizeInputs,
    WireError,
    decode_to_engine,
    encode_frame,
)
from engine_service.server.backlog import Backlog
from engine_service.server.frame_buffer import FrameBuffer, FrameQueue
from engine_service.server.generation import Outbox
from engine_service.server.listening import peer_uid
from engine_service.server.open_requests import OpenRequest, OpenRequests
from engine_service.server.questions import answer_frame

if TYPE_CHECKING:
    from engine_service.server.service import EngineService

logger = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Speaks with one client; all of it runs on the event loop."""

    def __init__(self, service: "EngineService") -> None:
        self._service = service
        self._limits = service.limits
        self._frames = FrameBuffer()
        self._large = FrameQueue()
        self._backlog: Backlog | None = None  # while its reader is behind
        self._requests = OpenRequests(service.limits)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._n_pings = 0
        self.client: str | None = None  # set by Hello

    # -- what asyncio calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if peer_uid(transport.get_extra_info("socket")) != os.geteuid():
            logger.warning("refused a connection of another user")
            transport.abort()
            return
        self._transport = transport
        self._large.write = transport.write
        self._close_after(self._limits.hello_timeout_s)
        if (refusal := self._service.opened(self)) is not None:
            self.refuse(refusal.to_wire())

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                if self._transport is None:
                    return
                self._handle(decode_to_engine(body))
        except FrameError as error:
            self.refuse(_protocol_error(str(error)))

    def pause_writing(self) -> None:
        self._large.pause()
        self._backlog = Backlog()

    def resume_writing(self) -> None:
        self._catch_up()
        self._large.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._drop_requests()
        self._service.closed(self)

    # -- what the service calls --------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue one frame; a client that leaves too much unread is cut off."""
        if self._transport is not None:
            self._write(encode_frame(message), is_large=isinstance(message, Embedded))

    def deliver(self, outbox: Outbox) -> None:
        """Send what a step has for this client; while it is behind, join it with what comes."""
        for answer in outbox.answers:
            self.send(answer)
        if not outbox.has_generations:
            return
        if self._backlog is None:
            self.send(outbox.generations(self._service.epoch))
        else:
            self._backlog.add(outbox)
            self._cut_off_if_unread()

    def _catch_up(self) -> None:
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            self.deliver(backlog.take())

    def _write(self, frame: bytes, *, is_large: bool) -> None:
        """Large frames, whose order does not matter, wait until those before them were read: many
        at once are not too much."""
        if self._transport is None:
            return
        if is_large:
            self._large.add(frame)
        else:
            self._transport.write(frame)
        self._cut_off_if_unread()

    def _cut_off_if_unread(self) -> None:
        if self._transport is None:
            return
        n_held = 0 if self._backlog is None else self._backlog.n_bytes
        if (
            self._transport.get_write_buffer_size() + n_held > self._limits.max_send_bytes
            or self._large.n_bytes > self._limits.max_unsent_answers_bytes
        ):
            logger.warning("client %s does not read: connection closed", self.client)
            self._transport.abort()
            self._transport = None
            self._drop_requests()

    def ended(self, request_id: str) -> None:
        """Forget a started request that has had its terminal."""
        self._requests.end(request_id)

    def refuse(self, error: WireError) -> None:
        """Say why, then close this connection and drop all that it asked for."""
        self.send(Failed(error=error))
        self.close()

    def close(self) -> None:
        """Close once what is queued has been read, or soon."""
        if self._transport is None:
            return
        self._catch_up()
        if self._transport is None:  # that was too much
            return
        self._large.flush()
        self._transport.close()
        self._close_after(self._limits.close_timeout_s)
        self._transport = None
        self._drop_requests()

    # -- messages ----------------------------------------------------------------------------

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Hello) != (self.client is None):
            raise FrameError("Hello is the first message of a connection and is sent once")
        match message:
            case Hello():
                self._hello(message)
            case Prepare():
                self._prepare(message)
            case Start():
                self._start(message)
            case Embed():
                self._embed(message)
            case Tokenize() | TokenizeInputs() | Detokenize():
                self._ask(message)
            case Abort():
                self._abort(message)
            case Ping():
                if self._may_ask():
                    self._service.ping(self, message)
            case Purge():
                if self._may_ask():
                    self._service.purge(self, message)

    def _hello(self, message: Hello) -> None:
        if message.protocol_version != PROTOCOL_VERSION:
            self.refuse(
                _protocol_error(
                    f"protocol version {message.protocol_version} is not spoken here, "
                    f"only {PROTOCOL_VERSION}"
                )
            )
            return
        if self._timer is not None:
            self._timer.cancel()
        self.client = message.client
        self.send(self._service.welcome())

    def _prepare(self, message: Prepare) -> None:
        if (request := self._open(message.request_id)) is not None:
            request.task = asyncio.get_running_loop().create_task(self._answer(message, request))

    def _embed(self, message: Embed) -> None:
        if (request := self._open(message.request_id)) is not None:
            request.task = asyncio.get_running_loop().create_task(self._begin(message, request))

    def _ask(self, question: TextQuestion) -> None:
        if (request := self._open(question.request_id)) is not None:
            request.task = asyncio.get_running_loop().create_task(self._reply(question))

    def _open(self, request_id: str) -> OpenRequest | None:
        """Make the place of a new request, or tell the client why there is none."""
        try:
            return self._requests.open(request_id, refusal=self._service.refusal())
        except Overloaded as refusal:
            self.send(Failed(request_id=request_id, error=refusal.to_wire()))
            return None

    async def _begin(self, message: Embed, request: OpenRequest) -> None:
        try:
            inputs = await self._service.prepare_inputs(message)
            request.key = self._service.embed(self, request_id=message.request_id, inputs=inputs)
        except EngineError as error:
            self._fail(message.request_id, error)
        request.task = None

    async def _reply(self, question: TextQuestion) -> None:
        try:
            answer = await self._service.answer(question)
            frame = answer_frame(question, answer, most_bytes=self._limits.max_answer_bytes)
        except EngineError as error:
            self._fail(question.request_id, error)
            return
        self._requests.end(question.request_id)
        self._write(frame, is_large=True)

    def _fail(self, request_id: str, error: EngineError) -> None:
        """End a request that the step thread does not know."""
        self._requests.end(request_id)
        self.send(Failed(request_id=request_id, error=error.to_wire()))

    async def _answer(self, message: Prepare, request: OpenRequest) -> None:
        try:
            prompt = await self._service.prepare(message)
        except EngineError as error:
            self._fail(message.request_id, error)
            return
        request.task = None
        request.prompt = prompt
        request.expiry = asyncio.get_running_loop().call_later(
            self._limits.prepared_ttl_s, self._requests.end, message.request_id
        )
        self.send(
            Prepared(
                request_id=message.request_id,
                n_prompt_tokens=len(prompt.token_ids),
                max_new_tokens=prompt.max_new_tokens,
            )
        )

    def _start(self, message: Start) -> None:
        request = self._requests.get(message.request_id)
        if request is not None and (request.key is not None or request.prompt is None):
            raise FrameError(f"Start of {message.request_id!r}, which is not waiting for one")
        try:
            if request is None or request.prompt is None:
                raise Overloaded("the prepared request has expired", retry_after_s=0.0)
            request.drop()
            _check_max_new_tokens(message, prompt=request.prompt)
            request.key = self._service.start(
                self, request_id=message.request_id, prompt=request.prompt, start=message
            )
            request.prompt = None
        except EngineError as error:
            self._requests.end(message.request_id)
            failed = FailedRequest(request_id=message.request_id, error=error.to_wire())
            self.send(StepOutputs(epoch=self._service.epoch, failed=(failed,)))

    def _abort(self, message: Abort) -> None:
        request = self._requests.get(message.request_id)
        if request is None:
            return
        if request.key is not None:
            self._service.abort(request.key)
            return
        request.drop()
        self._requests.end(message.request_id)

    def _may_ask(self) -> bool:
        """Count a question to the step thread, unless too many are open.

        A stuck step loop answers none: those beyond the bound time out at the client anyway.
        """
        if self._n_pings >= self._limits.max_pings:
            return False
        self._n_pings += 1
        return True

    def pong(self, message: Message) -> None:
        """Answer one question to the step thread."""
        self._n_pings -= 1
        self.send(message)

    # -- closing -----------------------------------------------------------------------------

    def _drop_requests(self) -> None:
        for key in self._requests.drop_all():
            self._service.lose(key)

    def _close_after(self, timeout_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self._transport.abort)


def _check_max_new_tokens(start: Start, *, prompt: PreparedPrompt) -> None:
    if not 1 <= start.max_new_tokens <= prompt.max_new_tokens:
        raise RequestError(
            f"max_new_tokens is {start.max_new_tokens}, but 1 to {prompt.max_new_tokens} "
            "were prepared",
            code="invalid_value",
            param="max_tokens",
        )


def _protocol_error(message: str) -> WireError:
    return WireError(kind="request", code="protocol_error", message=message)
