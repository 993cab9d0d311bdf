"""Daphne with what it lacks: senders wait for slow readers, bodies and headers are bounded, and
SIGTERM drains. ``python -m config.server --port 8000`` serves ``config.asgi``."""

import argparse
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from daphne.server import Server, reactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from apps.core.exceptions import Unavailable
from config.connections import (
    BoundedHTTPFactory,
    BoundedRequest,
    BoundedWebSocket,
    BoundedWebSocketFactory,
    error_message,
)
from config.loading import loading

logger = logging.getLogger("config.server")

EXIT_PORT_TAKEN: Final = 98
# In the kernel, for each connection; with Twisted's 64 KiB it bounds what a stopped reader holds.
SEND_BUFFER_BYTES: Final = 64 * 1024
IN_BAND_END_S: Final = 3.0
CLOSE_SERVICE_RESTART: Final = 1012


class DrainingServer(Server):
    """Serves one listening socket until a signal, then drains.

    is_shared: other processes accept on the socket too, so it is let go as soon as draining
    begins; else it is kept, to tell newcomers to come back.
    """

    def __init__(
        self,
        application: Any,
        *,
        listener: socket.socket,
        is_shared: bool,
        max_body_bytes: Callable[..., int],
        max_message_bytes: int,
        stall_timeout_s: float,
        drain_s: float,
        exit_with_parent: bool,
    ) -> None:
        super().__init__(
            application,
            endpoints=["adopted"],
            server_name="",
            websocket_max_message_size=max_message_bytes,
            websocket_max_frame_size=max_message_bytes,
        )
        self.max_body_bytes = max_body_bytes
        self.stall_timeout_s = stall_timeout_s
        self._listener = listener
        self._is_shared = is_shared
        self._drain_s = drain_s
        self._exit_with_parent = exit_with_parent
        self._draining: asyncio.Task[None] | None = None

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    def run(self) -> None:
        """Serve until drained. In place of the parent's, which knows neither our protocols nor an
        adopted socket."""
        self.connections: dict[Any, dict[str, Any]] = {}
        self.http_factory = BoundedHTTPFactory(self)
        self.ws_factory = BoundedWebSocketFactory(self, server=self.server_name)
        self.ws_factory.setProtocolOptions(
            failByDrop=False,  # tell a client why it is closed
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
            # No compression: a message is never larger than what was sent of it.
            perMessageCompressionAccept=_no_compression,
        )
        logging.getLogger("twisted").setLevel(logging.ERROR)
        globalLogBeginner.beginLoggingTo(
            [STDLibLogObserver("twisted")], redirectStandardIO=False, discardBuffer=True
        )
        loop = reactor._asyncioEventloop
        asyncio.set_event_loop(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        if self._exit_with_parent:
            loop.add_reader(sys.stdin.fileno(), self._on_stdin, loop)
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        reactor.addSystemEventTrigger("before", "shutdown", self.kill_all_applications)
        self._listener.setblocking(False)  # Twisted accepts until there is nothing to accept
        self.port = reactor.adoptStreamPort(
            self._listener.fileno(), self._listener.family, self.http_factory
        )
        host, port = self._listener.getsockname()[:2]
        self._listener.close()
        logger.info("Serving on %s port %d", host, port)
        reactor.run(installSignalHandlers=False)

    # -- applications ------------------------------------------------------------------------

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Start the application of a connection, or a refusal while draining."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope.setdefault("asgi", {"version": "3.0"})
        application = _refuse if self.is_draining else self.application
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(
            application(scope, protocol.receive, partial(self.handle_reply, protocol))
        )
        return queue

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Send once the client has read enough of what was sent before; cut it off when it does
        not within the deadline, which its application hears as a disconnect.

        Raises:
            ConnectionResetError: a WebSocket's message can reach nobody any more, as the ASGI
                specification asks; the disconnect is on the way.
        """
        is_read = not protocol.gate.is_closed or await protocol.gate.wait(self.stall_timeout_s)
        if not is_read:
            logger.info("A client read nothing for %g s and was cut off", self.stall_timeout_s)
            protocol.drop()
        if message["type"] == "websocket.send" and not (is_read and protocol.is_heard):
            raise ConnectionResetError("The client is gone.")
        if is_read:
            await super().handle_reply(protocol, message)

    def kill_all_applications(self) -> None:
        """Nothing runs any more after draining but what ignored its end."""
        for task in self._running():
            task.cancel()

    # -- draining ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin to stop; a second call stops at once."""
        if self.is_draining:
            _stop_reactor()
            return
        self._draining = asyncio.get_event_loop().create_task(self._drain())

    def _on_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drain when the pipe from the parent ends: whoever held it is gone."""
        if not os.read(sys.stdin.fileno(), 1024):
            loop.remove_reader(sys.stdin.fileno())
            if not self.is_draining:
                self.drain()

    async def _drain(self) -> None:
        from apps.gateway.runtime import gateway_runtime
        from apps.gateway.websocket.sessions import sessions

        runtime = gateway_runtime()
        runtime.is_draining = True
        sessions.drain()
        logger.info("Draining: %d requests run", len(runtime.live))
        try:
            if self._is_shared:
                self.port.stopListening()
            await self._until_idle(runtime, timeout_s=self._drain_s)
            runtime.interrupt_all()
            await self._until_idle(runtime, timeout_s=IN_BAND_END_S)
            for protocol in list(self.connections):
                if isinstance(protocol, BoundedWebSocket):
                    protocol.serverClose(code=CLOSE_SERVICE_RESTART)
            await self._until_idle(runtime, timeout_s=IN_BAND_END_S, with_sockets=True)
            async with asyncio.timeout(IN_BAND_END_S):
                await runtime.aclose()
        except TimeoutError:
            logger.warning("Some requests were not settled in time; their rows will expire")
        finally:
            _stop_reactor()

    async def _until_idle(
        self, runtime: Any, *, timeout_s: float, with_sockets: bool = False
    ) -> None:
        deadline_s = reactor.seconds() + timeout_s
        kinds: Any = (BoundedRequest, BoundedWebSocket) if with_sockets else BoundedRequest
        # Polled, because Daphne tells no one when a request has ended.
        while (  # noqa: ASYNC110
            self._running(kinds) or runtime.live
        ) and reactor.seconds() < deadline_s:
            await asyncio.sleep(0.02)

    def _running(self, kinds: Any = object) -> list["asyncio.Future[None]"]:
        return [
            details["application_instance"]
            for protocol, details in self.connections.items()
            if isinstance(protocol, kinds)
            and "application_instance" in details
            and not details["application_instance"].done()
        ]


def _no_compression(_offers: Any) -> None:
    """Accept none of the compressions that a client offers."""


def _stop_reactor() -> None:
    if reactor.running:
        reactor.stop()


async def _refuse(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application of whoever comes while draining."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    error = Unavailable(
        "The server is shutting down; try again shortly.",
        code="server_shutting_down",
        retry_after_s=2.0,
    )
    headers, body = error_message(error, path=scope["path"])
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def listening_socket(*, host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises OSError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="config.server", description="Serve the platform.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a listening socket that is open already")
    parser.add_argument("--exit-with-parent", action="store_true", help="drain when stdin ends")
    options = parser.parse_args(arguments)
    try:
        if options.fd is not None:
            listener = socket.socket(fileno=options.fd)
        else:
            listener = listening_socket(host=options.host.strip("[]"), port=options.port)
    except OSError as error:
        place = f"{options.host}:{options.port}" if options.fd is None else f"fd {options.fd}"
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"failed: {error.strerror}"
        print(f"config.server: {place} {reason}; choose another --port", file=sys.stderr)  # noqa: T201
        return EXIT_PORT_TAKEN if error.errno == errno.EADDRINUSE else 1
    listener.setblocking(False)  # else accept() holds the whole loop when a client has gone again
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")

    with loading():
        from django.conf import settings

        from config.asgi import application
        from config.limits import max_body_bytes

    DrainingServer(
        application,
        listener=listener,
        is_shared=options.fd is not None,
        max_body_bytes=max_body_bytes,
        max_message_bytes=settings.GATEWAY_MAX_BODY_BYTES,
        stall_timeout_s=settings.GATEWAY_STALL_TIMEOUT_S,
        drain_s=settings.GATEWAY_DRAIN_S,
        exit_with_parent=options.exit_with_parent,
    ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
