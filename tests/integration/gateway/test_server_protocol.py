"""The real server and what is no proper HTTP, or claims what a client may not say."""

import asyncio
import json

import httpx
import pytest

from apps.rbac.models import ApiToken
from tests.processes import ServerRun


async def answer(server: ServerRun, data: bytes) -> tuple[bytes, bytes]:
    """Return head and body of the one answer to what is sent as it stands."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await reader.readexactly(length)
    finally:
        writer.close()


@pytest.mark.parametrize("value", [b"//elsewhere.example", b"/v1", b"\xff"])
async def test_no_client_chooses_the_root_path(server: ServerRun, value: bytes) -> None:
    head, _ = await answer(
        server, b"GET / HTTP/1.1\r\nHost: localhost\r\nDaphne-Root-Path: %s\r\n\r\n" % value
    )
    assert head.startswith(b"HTTP/1.1 302 ")
    assert b"Location: /admin/\r\n" in head


_WEBSOCKET = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"G\xffT /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nA B: c\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nA: %s\r\n\r\n" % (b"x" * 20_000),
        b"GET /v1/models HTTP/1.1\r\n%s\r\n" % b"".join(b"A%d: b\r\n" % n for n in range(200)),
        b"GET /v1/models HTTP/1.1\r\n%s\r\n" % (b"A: %s\r\n" % (b"x" * 2000) * 20),
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        _WEBSOCKET + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_the_one_error_body(
    server: ServerRun, data: bytes
) -> None:
    head, content = await answer(server, data)
    body = json.loads(content)
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nx-request-id: req-" in head.lower()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (
            b"POST /v1/messages HTTP/1.1\r\nContent-Length: 99000000\r\n\r\n",
            413,
            "request_too_large",
        ),
        (
            b"POST /v1/messages?beta=true HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            400,
            "invalid_request_error",
        ),
        (b"GET /v1/messages/nothing HTTP/1.1\r\n\r\n", 404, "not_found_error"),
        (b"GET /v1/messages HTTP/1.1\r\n\r\n", 401, "authentication_error"),
    ],
)
async def test_errors_before_the_view_are_worded_as_the_path_wants_it(
    server: ServerRun, data: bytes, status: int, kind: str
) -> None:
    head, content = await answer(server, data)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    body = json.loads(content)
    assert (body["type"], body["error"]["type"]) == ("error", kind)


async def test_a_form_is_no_json_however_it_is_written(server: ServerRun, token: ApiToken) -> None:
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        headers = {"Authorization": f"Bearer {token.secret}", "Content-Type": kind}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
            refused = await client.post("/v1/completions", content=b"{}")
        assert refused.status_code == 415
        assert refused.json()["error"]["code"] == "unsupported_media_type"
