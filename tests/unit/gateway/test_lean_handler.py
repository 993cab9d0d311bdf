"""The lean handler's race between a view and a client that leaves, without a server."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from config.inference import LeanHandler

seen: list[str] = []
entered: asyncio.Event


async def slow(request: HttpRequest) -> HttpResponse:
    entered.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    return HttpResponse()


async def slow_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            entered.set()
            await asyncio.sleep(60)
        finally:
            seen.append("closed")

    return StreamingHttpResponse(parts())


async def echo(request: HttpRequest) -> HttpResponse:
    seen.append("ran")
    return HttpResponse(request.read())


urlpatterns = [path("slow", slow), path("stream", slow_stream), path("echo", echo)]

Message = MutableMapping[str, Any]


class Client:
    """One side of an ASGI conversation."""

    def __init__(self, *messages: Message) -> None:
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        for message in messages:
            self.queue.put_nowait(message)

    async def ask(self, path: str) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"host", b"localhost")],
            "query_string": b"",
        }
        await LeanHandler(__name__)(scope, self.queue.get, self.send)

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.leave()  # as a server does once the answer is sent

    def leave(self) -> None:
        self.queue.put_nowait({"type": "http.disconnect"})


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.fixture(autouse=True)
async def fresh() -> None:
    global entered
    seen.clear()
    entered = asyncio.Event()


async def test_the_body_is_put_together() -> None:
    client = Client(body(b"a", more=True), body(b"b", more=True), body(b""))
    await client.ask("/echo")
    assert [message.get("status") for message in client.sent] == [200, None]
    assert client.sent[1]["body"] == b"ab"
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-length"] == b"2"
    assert headers[b"x-request-id"].startswith(b"req-")


@pytest.mark.parametrize(("path", "trace"), [("/slow", "cancelled"), ("/stream", "closed")])
async def test_leaving_cancels_the_view(path: str, trace: str) -> None:
    client = Client(body(b""))
    asking = asyncio.create_task(client.ask(path))
    await entered.wait()
    client.leave()
    await asyncio.wait_for(asking, 1)
    assert seen == [trace]
    assert not asking.cancelled()


async def test_leaving_before_the_body_is_whole_runs_nothing() -> None:
    client = Client(body(b"a", more=True), {"type": "http.disconnect"})
    await client.ask("/echo")
    assert (client.sent, seen) == ([], [])


async def test_a_cancelled_server_task_stays_cancelled() -> None:
    client = Client(body(b""))
    asking = asyncio.create_task(client.ask("/slow"))
    await entered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert seen == ["cancelled"]


async def test_a_body_over_the_bound_is_not_kept(settings: Any) -> None:
    settings.GATEWAY_MAX_BODY_BYTES = 10
    client = Client(body(b"x" * 8, more=True), body(b"x" * 8, more=True))
    await client.ask("/echo")
    assert client.sent[0]["status"] == 413
    assert b'"code":"payload_too_large"' in client.sent[1]["body"]
    assert seen == []


async def test_an_unknown_path() -> None:
    client = Client(body(b""))
    await client.ask("/nothing/" + "x" * 5000)
    assert client.sent[0]["status"] == 404
    assert len(client.sent[1]["body"]) < 500
