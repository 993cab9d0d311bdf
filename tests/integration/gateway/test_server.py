"""The real server: clients that leave, that stop reading, that send too much, and its own end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from config.server import EXIT_PORT_TAKEN, listening_socket
from tests.integration.gateway.conftest import chat
from tests.processes import LONG_ANSWER, ROOT, EngineRun, ServerRun, server_environment
from tests.rows import all_of
from tests.waiting import wait_until_async

LONG = {"max_tokens": LONG_ANSWER, "ignore_eos": True}


def raw_request(token: ApiToken, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (token.secret.encode(), len(content), content)
    )


@contextlib.asynccontextmanager
async def connection(
    server: ServerRun, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (server.host, server.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=2**16)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rows(**fields: Any) -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).filter(**fields)))


async def test_headers_come_before_the_first_token(server: ServerRun, token: ApiToken) -> None:
    async with connection(server) as (reader, writer):
        writer.write(raw_request(token, chat(stream=True)))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"x-request-id: chatcmpl-" in head.lower()
        rest = await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 10)
        assert b": keep-alive\n\n" in rest


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_sequence(
    server: ServerRun, token: ApiToken, engine_process: EngineRun, stream: bool
) -> None:
    async with connection(server) as (_, writer):
        writer.write(raw_request(token, chat(stream=stream, **LONG)))
        await wait_until_async("the request to run", lambda: engine_process.stats().n_running == 1)
        before = engine_process.stats()
    await wait_until_async("the engine to be idle", engine_process.is_idle, timeout_s=5)
    after = engine_process.stats()
    assert after.n_aborted == before.n_aborted + 1
    await wait_until_async("the row to be settled", lambda: rows(state="settled"))
    [row] = await rows()
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")
    assert 0 < row.n_completion_tokens < LONG_ANSWER
    assert row.n_prompt_tokens == 24


async def test_many_disconnects_at_random_points(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async def leave(after_s: float, *, stream: bool) -> None:
        async with connection(server) as (_, writer):
            writer.write(raw_request(token, chat(stream=stream, **LONG)))
            await asyncio.sleep(after_s)

    await asyncio.gather(*(leave(index % 20 / 100, stream=index % 3 > 0) for index in range(60)))
    await wait_until_async("the engine to be idle", engine_process.is_idle, timeout_s=20)

    # In one look: a request that left early may reserve after the others have settled.
    async def are_aborted() -> bool:
        return {row.outcome for row in await rows()} <= {"aborted"}

    await wait_until_async("every row to be settled as aborted", are_aborted)
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            f"{server.base_url}/v1/chat/completions",
            json=chat(),
            headers={"Authorization": f"Bearer {token.secret}"},
        )
    assert answer.status_code == 200


@pytest.mark.server_env(GATEWAY_STALL_TIMEOUT_S="1")
async def test_a_client_that_stops_reading_is_bounded_and_cut_off(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async with connection(server, receive_buffer=4096) as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        # Of some kilobytes a token, so that the buffers are full long before the answer is over,
        # however slow the server is beside the engine.
        wordy = chat(stream=True, logprobs=True, top_logprobs=20, **LONG)
        writer.write(raw_request(token, wordy))
        await wait_until_async("the stall to end it", lambda: rows(state="settled"), timeout_s=60)
        [row] = await rows()
        await wait_until_async("the engine to be idle", engine_process.is_idle)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        n_received = 0
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                n_received += len(part)
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")
    # 64 KiB of Twisted's, twice 256 KiB as Linux counts the socket's, and the client's own.
    assert n_received < 1_000_000
    assert 0 < row.n_completion_tokens < LONG_ANSWER


async def test_a_slow_reader_gets_everything(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    received = b""
    async with connection(server, receive_buffer=4096) as (reader, writer):
        writer.write(raw_request(token, chat(stream=True, max_tokens=400, ignore_eos=True)))
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            received += await asyncio.wait_for(reader.read(997), 20)
    assert b'"finish_reason":"length"' in received
    await wait_until_async("the engine to be idle", engine_process.is_idle)


@pytest.mark.server_env(GATEWAY_MAX_BODY_BYTES="20000")
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_bound(server: ServerRun, token: ApiToken, is_chunked: bool) -> None:
    content = b"x" * 3_000_000
    response = httpx.post(
        f"{server.base_url}/v1/chat/completions",
        content=iter([content]) if is_chunked else content,
        headers={"Authorization": f"Bearer {token.secret}", "Content-Type": "application/json"},
        timeout=20,
    )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert response.headers["x-request-id"].startswith("req-")
    assert response.headers["connection"] == "close"
    again = httpx.get(
        f"{server.base_url}/v1/models", headers={"Authorization": f"Bearer {token.secret}"}
    )
    assert again.status_code == 200


def test_pages_of_django_are_served_too(server: ServerRun) -> None:
    response = httpx.get(f"{server.base_url}/", follow_redirects=True)
    assert response.status_code == 200
    assert response.url.path == "/admin/login/"


@pytest.mark.server_env(GATEWAY_DRAIN_S="20")
async def test_sigterm_lets_a_stream_end(server: ServerRun, token: ApiToken) -> None:
    async with connection(server) as (reader, writer):
        writer.write(raw_request(token, chat(stream=True, max_tokens=300, ignore_eos=True)))
        await reader.readuntil(b'"role":"assistant"')
        server.process.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 20)
    assert b'"finish_reason":"length"' in rest
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    [row] = await rows()
    assert (row.outcome, row.n_completion_tokens) == ("completed", 300)


@pytest.mark.server_env(GATEWAY_DRAIN_S="20")
async def test_newcomers_are_sent_away_while_draining(server: ServerRun, token: ApiToken) -> None:
    async with connection(server) as (reader, writer), connection(server) as (idle, newcomer):
        newcomer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(idle.readuntil(b"\r\n\r\n"), 5)
        writer.write(raw_request(token, chat(stream=True, **LONG)))
        await reader.readuntil(b'"role":"assistant"')
        server.process.send_signal(signal.SIGTERM)

        def is_draining() -> bool:
            return "Draining: 1 requests run" in server.log.read_text()

        await wait_until_async("draining to begin", is_draining)
        newcomer.write(raw_request(token, chat()))
        answer = await asyncio.wait_for(idle.read(-1), 5)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(server.host, server.port)
    head, _, body = answer[answer.index(b"HTTP/1.1") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in head.lower()
    assert json.loads(body)["error"]["code"] == "server_shutting_down"
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    [row] = await rows()
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")


@pytest.mark.server_env(GATEWAY_DRAIN_S="1")
async def test_sigterm_ends_a_long_stream_in_band(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async with connection(server) as (reader, writer):
        writer.write(raw_request(token, chat(stream=True, **LONG)))
        await reader.readuntil(b'"role":"assistant"')
        server.process.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(reader.read(-1), 20)
    assert rest.count(b"data: [DONE]\n\n") == 1
    assert b'"code":"server_shutting_down"' in rest
    assert b'"finish_reason":"length"' not in rest
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    [row] = await rows()
    assert (row.state, row.outcome) == ("settled", "failed")
    assert row.error_code == "server_shutting_down"
    await wait_until_async("the engine to be idle", engine_process.is_idle)


@pytest.mark.server_env()
def test_an_idle_server_ends_at_once_and_in_silence(server: ServerRun) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=5) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_taken_port_is_one_clear_line() -> None:
    with listening_socket(host="127.0.0.1", port=0) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "config.server", "--port", port],
            cwd=ROOT,
            env={**os.environ, **server_environment()},
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert result.returncode == EXIT_PORT_TAKEN == 98
    assert result.stderr == (f"config.server: 127.0.0.1:{port} is taken; choose another --port\n")
    assert result.stdout == ""


def test_it_ends_with_its_parent(transactional_db: None) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "config.server", "--port", "0", "--exit-with-parent"],
        cwd=ROOT,
        env={**os.environ, **server_environment()},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None
    try:
        while b"Serving on" not in (line := process.stderr.readline()):
            assert line, "the server ended"
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.stderr.close()
