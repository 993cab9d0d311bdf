"""Daphne's protocols with bounds: bytes in a body, in headers, in flight to a slow reader and in
the queue of a WebSocket. They know sockets, and nothing of what is served."""

import asyncio
import io
from typing import IO, Any, Final

import msgspec
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.server import reactor
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.web.http import HTTPChannel, Request, _GenericHTTPChannelProtocol

from apps.core.exceptions import AppError, InvalidRequest, PayloadTooLarge
from apps.core.ids import new_id
from apps.gateway.rest.wording import error_body
from config.backpressure import WriteGate

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
# A refused body is read on and dropped up to here, so that the refusal is not lost to a reset.
MAX_DROPPED_BYTES: Final = 64 * 1024 * 1024
BODY_PART_BYTES: Final = 64 * 1024
QUEUE_HIGH: Final = 64
QUEUE_LOW: Final = 16
# Each is held until the last has come, and an empty one adds nothing to the message's size.
MAX_FRAGMENTS: Final = 4096
# What an application is told where no code came; never on the wire (RFC 6455, 7.4.1).
CLOSE_NO_CODE: Final = 1005
CLOSE_LOST: Final = 1006


def error_message(error: AppError, *, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an error that no application answers."""
    body = msgspec.json.encode(error_body(error, path=path))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", new_id("req").encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    return headers, body


def _last_answer(status: bytes, error: AppError, *, path: str) -> bytes:
    """Return an answer, whole as it goes over the wire, after which the connection closes."""
    headers, body = error_message(error, path=path)
    headers.append((b"connection", b"close"))
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %s\r\n%s\r\n%s" % (status, lines, body)


class BoundedChannel(HTTPChannel):
    """One HTTP connection. What cannot be read as HTTP is refused in the one error body too."""

    maxHeaders = MAX_HEADERS  # noqa: N815
    totalHeadersSize = MAX_HEADER_BYTES  # noqa: N815

    def _respondToBadRequestAndDisconnect(self) -> None:  # noqa: N802 - Twisted's name
        error = InvalidRequest("The request is not valid HTTP, or its headers are too large.")
        self.transport.write(_last_answer(b"400 Bad Request", error, path=_path(self)))
        self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802
        self._respondToBadRequestAndDisconnect()


class BoundedRequest(WebRequest):
    """One HTTP request."""

    _response_started: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.gate = WriteGate()
        self._n_body_bytes = 0
        self._max_body_bytes = 0
        self._is_refused = False
        self._body: IO[bytes] | None = None
        self.content: Any
        super().__init__(*args, parsePOSTFormSubmission=False, **kwargs)  # Django parses forms

    def drop(self) -> None:
        """Cut the connection of a client that does not read."""
        if self.channel is not None:
            self.channel.forceAbortClient()

    # -- in ----------------------------------------------------------------------------------

    def gotLength(self, length: int | None) -> None:  # noqa: N802 - Twisted's names
        super().gotLength(length)
        self._max_body_bytes = self.server.max_body_bytes(
            method=self.channel._command.decode("latin1"), path=_path(self.channel)
        )
        if length is not None and length > self._max_body_bytes:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        self._n_body_bytes += len(data)
        if not self._is_refused and self._n_body_bytes > self._max_body_bytes:
            self._refuse()
        if not self._is_refused:
            super().handleContentChunk(data)
        elif self._n_body_bytes > MAX_DROPPED_BYTES:
            self.channel.forceAbortClient()

    def process(self) -> Any:
        if self._is_refused:
            self.channel.loseConnection()
            return None
        # Daphne takes its root path from this header, whoever sends it.
        self.requestHeaders.removeHeader(b"daphne-root-path")
        protocols = self.requestHeaders.getRawHeaders(b"sec-websocket-protocol", ())
        if not all(value.isascii() for value in protocols):  # Daphne would fail at it
            self.basic_error(400, b"Bad Request", "Invalid header value")
            return None
        if self.requestHeaders.hasHeader(b"upgrade"):
            return super().process()
        # Daphne would queue the whole body at once; ours is read from its file as it is wanted.
        body: IO[bytes] = self.content
        body.seek(0)
        self._body, self.content = body, io.BytesIO()
        processed = super().process()
        if self.application_queue is not None and not self.application_queue.empty():
            self.application_queue.get_nowait()  # the empty body
        return processed

    async def receive(self) -> dict[str, Any]:
        """The application's next message: the body in parts, then what became of the client."""
        if self._body is None:
            message: dict[str, Any] = await self.application_queue.get()
            return message
        part = self._body.read(BODY_PART_BYTES)
        is_last = len(part) < BODY_PART_BYTES
        if is_last:
            self._body.close()
            self._body = None
        else:
            await asyncio.sleep(0)  # others have their turn while a large one is read
        return {"type": "http.request", "body": part, "more_body": not is_last}

    def _refuse(self) -> None:
        self._is_refused = True
        error = PayloadTooLarge(f"The request body is over {self._max_body_bytes} bytes.")
        self.channel.write(_last_answer(b"413 Content Too Large", error, path=_path(self.channel)))

    # -- out ---------------------------------------------------------------------------------

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Send a part of the answer. In place of the parent's, which makes much of a log that
        nobody reads."""
        if self.finished or self.channel is None:
            return
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            if not self._response_started:
                raise ValueError("The body of an answer came before its start.")
            Request.write(self, message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()

    def _start(self, message: dict[str, Any]) -> None:
        if self._response_started:
            raise ValueError("An answer was started twice.")
        self._response_started = True
        if self.channel._waitingForTransport:  # an earlier answer is still unread
            self.gate.pauseProducing()
        self.registerProducer(self.gate, True)
        self.setResponseCode(message["status"])
        for name, value in message.get("headers", ()):
            self.responseHeaders.addRawHeader(name, value)
        if self.server.is_draining:
            self.channel.persistent = False
            self.setHeader(b"connection", b"close")

    def finish(self) -> None:
        channel = self.channel
        if self.producer is not None:
            self.unregisterProducer()
        if self.application_queue:
            self.send_disconnect()
        Request.finish(self)
        self.server.protocol_disconnected(self)
        if channel._waitingForTransport:
            reactor.callLater(self.server.stall_timeout_s, _drop_unread, channel)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        self.gate.stopProducing()
        super().connectionLost(reason)

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        """What Daphne itself refuses leaves in the one error body too."""
        error = InvalidRequest(body) if status < 500 else AppError()
        headers, content = error_message(error, path=self.path.decode("latin1"))
        self.handle_reply({"type": "http.response.start", "status": status, "headers": headers})
        self.handle_reply({"type": "http.response.body", "body": content})


def _path(channel: Any) -> str:
    """Return the path of the request that is being read, empty before its first line."""
    path: bytes = getattr(channel, "_path", None) or b""
    return path.partition(b"?")[0].decode("latin1")


def _drop_unread(channel: Any) -> None:
    if channel._waitingForTransport and channel.transport is not None:
        channel.forceAbortClient()


class BoundedHTTPFactory(HTTPFactory):
    """Makes connections and requests of our own kinds."""

    protocol = staticmethod(lambda: _GenericHTTPChannelProtocol(BoundedChannel()))

    def buildProtocol(self, addr: Any) -> Any:  # noqa: N802
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = BoundedRequest
        return protocol

    def log(self, request: Any) -> None:
        """Nobody reads Twisted's line of a request."""


class BoundedWebSocket(WebSocketProtocol):
    """One WebSocket connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = WriteGate()
        self._is_paused = False
        self._n_fragments = 0

    @property
    def is_heard(self) -> bool:
        """Whether messages still go out; not once either side has said goodbye."""
        return self.state not in (self.STATE_CLOSING, self.STATE_CLOSED)

    def drop(self) -> None:
        """Cut the connection of a client that does not read."""
        self.transport.abortConnection()

    def onConnect(self, request: Any) -> Any:  # noqa: N802
        self.transport.unregisterProducer()  # that of the HTTP channel
        self.transport.registerProducer(self.gate, True)
        return super().onConnect(request)

    def onMessageBegin(self, isBinary: bool) -> None:  # noqa: N802, N803
        super().onMessageBegin(isBinary)
        self._n_fragments = 0

    def onMessageFrameBegin(self, length: int) -> None:  # noqa: N802
        super().onMessageFrameBegin(length)
        self._n_fragments += 1
        if self._n_fragments > MAX_FRAGMENTS and not self.failedByMe:
            self._max_message_size_exceeded(
                self._n_fragments, MAX_FRAGMENTS, f"A message has over {MAX_FRAGMENTS} fragments."
            )

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N802, N803
        super().onMessage(payload, isBinary)
        if not self._is_paused and self.application_queue.qsize() >= QUEUE_HIGH:
            self._is_paused = True
            self.transport.pauseProducing()

    async def receive(self) -> dict[str, Any]:
        """The application's next message; reading goes on once it has caught up."""
        message: dict[str, Any] = await self.application_queue.get()
        if self._is_paused and self.application_queue.qsize() <= QUEUE_LOW:
            self._is_paused = False
            self.transport.resumeProducing()
        return message

    def serverClose(self, code: int | None = None) -> None:  # noqa: N802
        """Close with any code of the protocol; the parent lets a server say only 1000 or its
        own."""
        self.sendCloseFrame(code=1000 if code is None else code)

    def dropConnection(self, abort: bool = False) -> None:  # noqa: N802
        """The closing handshake is over: tell the application now, because the transport closes
        only once everything was read, and a client that says goodbye may not read on."""
        super().dropConnection(abort)
        self.gate.stopProducing()
        if hasattr(self, "application_queue"):
            code = self.remoteCloseCode  # None as well where the client's goodbye named none
            if code is None:
                code = CLOSE_NO_CODE if self.wasClean else CLOSE_LOST
            self.application_queue.put_nowait({"type": "websocket.disconnect", "code": code})
            reactor.callLater(self.server.stall_timeout_s, self.transport.abortConnection)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: N802, N803
        self.gate.stopProducing()
        if hasattr(self, "server"):  # else the handshake failed before Daphne knew of it
            super().onClose(wasClean, code, reason)


class BoundedWebSocketFactory(WebSocketFactory):
    protocol = BoundedWebSocket
