"""Bytes on a socket: framing of streams, keep-alive, bodies that are too large, leaving."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import openai
import pytest

from tests.faults.streaming import connection, long_answer, read_stream
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

MAX_REFUSAL_S = 5.0
TOO_LARGE = 27_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def wire(product: RunningProduct) -> Iterator[socket.socket]:
    with socket.create_connection((product.host, product.port), timeout=60) as wire:
        yield wire


def request(
    product: RunningProduct,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: tuple[str, ...] = (),
) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {product.api_token}",
    ]
    lines += [*headers, "Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def read_answer(stream: BinaryIO) -> Answer:
    """Read one answer off a connection that may carry more."""
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, b"".join(_chunks(stream)))
    return Answer(status, headers, stream.read(int(headers["content-length"])))


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while n_bytes := int(stream.readline(), 16):
        yield stream.read(n_bytes)
        assert stream.read(2) == b"\r\n"
    assert stream.readline() == b"\r\n"


def chat(product: RunningProduct, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi"}]
    return {"model": product.model, "messages": turns, "max_tokens": 6, "temperature": 0, **more}


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_framing_of_a_stream(
    product: RunningProduct, wire: socket.socket, *, include_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    wire.sendall(
        request(product, "POST", "/v1/chat/completions", chat(product, stream=True, **options))
    )
    with wire.makefile("rb") as stream:
        answer = read_answer(stream)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")
    events = answer.body.removesuffix(b"\n\n").split(b"\n\n")
    said = [event for event in events if not event.startswith(b":")]
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in said)
    assert [event for event in said if event == b"data: [DONE]"] == said[-1:]
    chunks = [json.loads(event[6:]) for event in said[:-1]]
    assert answer.headers["x-request-id"] == chunks[0]["id"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert ends == ["length"]
    assert [bool(chunk.get("usage")) for chunk in chunks].count(True) == include_usage
    if include_usage:
        assert chunks[-1]["choices"] == []
        assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= set(chunks[-1]["usage"])
    else:
        assert all("usage" not in chunk for chunk in chunks)


def test_requests_in_a_row_on_one_connection(product: RunningProduct, wire: socket.socket) -> None:
    """Sent at once, before any answer: answered one by one, in their order."""
    sent = [
        request(product, "GET", "/v1/models"),
        request(product, "POST", "/v1/chat/completions", chat(product)),
        request(product, "POST", "/v1/chat/completions", chat(product, n=10_000)),
        request(product, "POST", "/v1/chat/completions", chat(product, stream=True)),
        request(product, "POST", "/v1/completions", {"model": product.model, "prompt": "Hi"}),
        request(product, "GET", "/healthz"),
    ]
    wire.sendall(b"".join(sent))
    with wire.makefile("rb") as stream:
        answers = [read_answer(stream) for _ in sent]
        assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 200]
        assert answers[0].json["object"] == "list"
        assert answers[1].json["object"] == "chat.completion"
        assert answers[2].json["error"]["param"] == "n"
        assert answers[3].body.endswith(b"data: [DONE]\n\n")
        assert answers[4].json["object"] == "text_completion"
        # It lives on.
        wire.sendall(sent[0])
        assert read_answer(stream).json == answers[0].json
    ids = {answer.headers["x-request-id"] for answer in answers[:-1]}
    assert len(ids) == len(answers) - 1


def test_a_body_that_comes_byte_by_byte(product: RunningProduct, wire: socket.socket) -> None:
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in request(product, "POST", "/v1/chat/completions", chat(product, max_tokens=2)):
        wire.sendall(bytes([byte]))
    with wire.makefile("rb") as stream:
        assert read_answer(stream).json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_of_27_megabytes(product: RunningProduct, *, is_chunked: bool) -> None:
    pid = product.engine().pid
    began_s = time.monotonic()
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {TOO_LARGE}"
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: Bearer {product.api_token}\r\n"
        f"Content-Type: application/json\r\n{length}\r\n\r\n"
    )
    with socket.create_connection((product.host, product.port), timeout=30) as wire:
        wire.sendall(head.encode())
        part = b" " * 1_000_000
        framed = b"%x\r\n%s\r\n" % (len(part), part) if is_chunked else part
        for _ in range(TOO_LARGE // len(part)):
            wire.sendall(framed)
        if is_chunked:
            wire.sendall(b"0\r\n\r\n")
        with wire.makefile("rb") as stream:
            answer = read_answer(stream)
    took_s = time.monotonic() - began_s
    assert answer.status == 413
    assert answer.json["error"]["code"] == "payload_too_large"
    assert answer.headers["x-request-id"]
    print(f"27 MB {'in chunks' if is_chunked else 'at once'} refused within {took_s:.2f} s")
    assert took_s < MAX_REFUSAL_S
    assert product.engine().pid == pid


def test_the_official_client_is_told_of_a_body_that_is_too_large(
    product: RunningProduct, client: openai.OpenAI
) -> None:
    began_s = time.monotonic()
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(
            model=product.model, messages=[{"role": "user", "content": "x" * TOO_LARGE}]
        )
    assert refused.value.status_code == 413
    assert refused.value.code == "payload_too_large"
    assert time.monotonic() - began_s < 2 * MAX_REFUSAL_S


@pytest.mark.parametrize("more", [{}, {"n": 3}], ids=["one", "three"])
async def test_a_client_that_leaves_in_a_stream_leaves_nothing_behind(
    product: RunningProduct, more: dict[str, Any]
) -> None:
    n_aborted = product.usage_outcomes()["aborted"]
    started = asyncio.Event()
    body = {**long_answer(product, n_tokens=1500), **more}
    async with connection(product, body) as reader:
        reading = asyncio.create_task(read_stream(reader, started))
        async with asyncio.timeout(30):
            await started.wait()
        reading.cancel()
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    assert product.usage_outcomes()["aborted"] == n_aborted + 1

    async def is_idle() -> bool:
        stats = await product.engine_stats()
        return stats.n_running + stats.n_waiting == 0 and (
            stats.n_blocks_free == stats.n_blocks_total
        )

    await wait_until_async("the engine to be idle, all blocks free", is_idle)
    query = (
        "SELECT n_completion_tokens, n_reserved_tokens FROM metering_usagerecord"
        " ORDER BY id DESC LIMIT 1"
    )
    ((n_made, n_reserved),) = product.rows(query)
    assert 0 < n_made < n_reserved


async def test_a_client_that_leaves_several_prompts_behind(product: RunningProduct) -> None:
    """Each prompt has a row of its own; all of them are settled."""
    n_aborted = product.usage_outcomes()["aborted"]
    body = {
        "model": product.model,
        "prompt": ["One", "Two", "Three"],
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": True,
    }
    reader, writer = await asyncio.open_connection(product.host, product.port)
    writer.write(request(product, "POST", "/v1/completions", body))
    async with asyncio.timeout(30):
        while b'"text"' not in await reader.readline():
            pass
    writer.transport.abort()
    await wait_until_async("the rows to be settled", lambda: product.n_open_usage_rows() == 0)
    assert product.usage_outcomes()["aborted"] == n_aborted + 3
