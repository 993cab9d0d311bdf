"""The lean ASGI handler of the doors: it reads the body, resolves the URL, runs the asynchronous
view and sends its answer, all raced against the client's leaving. No middleware, no signals, no
threads: measured, those are most of what a request costs behind Django's own handler."""

import asyncio
import io
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import IO, Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import Resolver404, get_resolver
from rest_framework.response import Response

from apps.core.exceptions import AppError, InvalidRequest, NotFound, PayloadTooLarge
from apps.core.ids import new_id
from apps.core.tenancy import nobody_yet
from apps.gateway.rest.base import StructRenderer, error_response
from apps.gateway.rest.streaming import EventStreamResponse
from apps.gateway.rest.wording import error_body
from config.limits import max_body_bytes

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _ClientLeft(Exception):
    """The client went away before its request was whole."""


class LeanHandler:
    """An ASGI application for the asynchronous views of one URL configuration."""

    def __init__(self, urlconf: str) -> None:
        self._resolver = get_resolver(urlconf)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with nobody_yet():
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.perf_counter()
        try:
            body, n_bytes = await _read_body(
                receive, limit=max_body_bytes(method=scope["method"], path=scope["path"])
            )
        except _ClientLeft:
            return
        except PayloadTooLarge as error:
            await _send(_rendered(_refusal(error, scope)), send, started_s=started_s)
            return
        race = _Race(receive)
        try:
            response = await self._respond(scope, body, n_bytes=n_bytes)
            try:
                await _send(response, send, started_s=started_s, before_last=race.win)
            finally:
                if isinstance(response, EventStreamResponse):
                    await response.aclose()
        except asyncio.CancelledError:
            if not race.is_lost:
                raise
        finally:
            race.close()

    async def _respond(self, scope: Scope, body: IO[bytes], *, n_bytes: int) -> HttpResponseBase:
        try:
            request = ASGIRequest(scope, body)
            request.META["CONTENT_LENGTH"] = str(n_bytes)  # chunked bodies name none
            match = self._resolver.resolve(request.path_info)
            response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        except Resolver404:
            missing = NotFound(f"There is nothing at {scope['method']} {scope['path'][:200]}.")
            response = _refusal(missing, scope)
        except UnicodeDecodeError:
            response = _refusal(InvalidRequest("The query string is not valid."), scope)
        return _rendered(response)


class _Race:
    """Cancels the task that made it once the client leaves, unless that task wins first."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._is_won = False
        self.is_lost = False
        self._watch = asyncio.ensure_future(_until_disconnect(receive))
        self._watch.add_done_callback(self._on_disconnect)

    def win(self) -> None:
        """Nothing but the last bytes is left to do: a client that leaves now changes nothing."""
        self._is_won = True

    def close(self) -> None:
        self._is_won = True
        self._watch.cancel()

    def _on_disconnect(self, watch: "asyncio.Future[None]") -> None:
        if not self._is_won and not watch.cancelled():
            self.is_lost = True
            self._task.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(receive: Receive, *, limit: int) -> tuple[IO[bytes], int]:
    """Return the body and its size. What is larger than a body usually may be goes to the disk."""
    body: IO[bytes] = io.BytesIO()
    n_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        part = message.get("body", b"")
        n_bytes += len(part)
        if n_bytes > limit:
            raise PayloadTooLarge(f"The request body is over {limit} bytes.")
        if n_bytes > settings.GATEWAY_MAX_BODY_BYTES and isinstance(body, io.BytesIO):
            spool = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the request
            spool.write(body.getbuffer())
            body = spool
        body.write(part)
        if not message.get("more_body", False):
            body.seek(0)
            return body, n_bytes


def _refusal(error: AppError, scope: Scope) -> Response:
    return error_response(error, body_of_error=partial(error_body, path=scope["path"]))


def _rendered(response: HttpResponseBase) -> HttpResponseBase:
    """Render what no view has: answers of this handler's own have no renderer yet."""
    if isinstance(response, Response) and not response.is_rendered:
        if not hasattr(response, "accepted_renderer"):
            response.accepted_renderer = StructRenderer()
            response.accepted_media_type = StructRenderer.media_type
            response.renderer_context = {}  # type: ignore[attr-defined]
        response.render()
    return response


async def _send(
    response: HttpResponseBase,
    send: Send,
    *,
    started_s: float,
    before_last: Callable[[], None] = lambda: None,
) -> None:
    if not response.has_header("X-Request-Id"):
        response["X-Request-Id"] = new_id("req")
    response["Request-Id"] = response["X-Request-Id"]  # as clients of /v1/messages call it
    response["OpenAI-Processing-Ms"] = str(round((time.perf_counter() - started_s) * 1000))
    start: Message = {"type": "http.response.start", "status": response.status_code}
    if isinstance(response, StreamingHttpResponse):
        await send({**start, "headers": _headers(response)})
        async for part in response:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        before_last()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    content: bytes = response.content  # type: ignore[attr-defined]
    response["Content-Length"] = str(len(content))
    before_last()
    await send({**start, "headers": _headers(response)})
    await send({"type": "http.response.body", "body": content, "more_body": False})


def _headers(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode("ascii"), value.encode("latin1")) for name, value in response.items()
    ]
