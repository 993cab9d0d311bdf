"""Sessions of /v1/stream over the real server: who may come back, until when, and what is left."""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_revoke
from tests.factories.access import ApiTokenFactory, MembershipFactory, UserFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.streams import closed_with, ends, receive, send, until
from tests.integration.gateway.test_websocket_session import session_cookie
from tests.processes import LONG_ANSWER, EngineRun, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async

LONG = {"max_tokens": LONG_ANSWER, "ignore_eos": True}


@contextlib.asynccontextmanager
async def opened(
    server: ServerRun, token: ApiToken, query: str
) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """Yield a connection and its first frame."""
    headers = {"Authorization": f"Bearer {token.secret}"}
    async with connect(f"{server.ws_url}?{query}", additional_headers=headers) as ws:
        yield ws, await receive(ws)
        ws.transport.abort()


async def cut_off(
    server: ServerRun, token: ApiToken, *, keep_s: int, **body: Any
) -> tuple[str, int]:
    """Start a request and lose the connection in it; return the session and the last event."""
    async with opened(server, token, f"resume={keep_s}") as (ws, ready):
        await send(ws, type="start", id="c1", **chat(**body))
        frames = await until(ws, lambda frame: frame["type"] == "delta")
    return ready["session"], frames[-1]["event"]


async def refusal(server: ServerRun, token: ApiToken, query: str) -> tuple[dict[str, Any], int]:
    """Return the error that a connection is refused with, and its close code."""
    async with opened(server, token, query) as (ws, frame):
        assert (frame["type"], frame["id"]) == ("error", None)
        code = await closed_with(ws)
    assert code is not None
    return frame["error"], code


async def settled_outcome() -> str:
    rows = await database_hop(lambda: list(all_of(UsageRecord).filter(state="settled")))
    return rows[0].outcome if rows else ""


@pytest.mark.parametrize("query", ["resume=0", "resume=61", "resume=x", "resume=1&session=a"])
async def test_wrong_queries(server: ServerRun, token: ApiToken, query: str) -> None:
    error, code = await refusal(server, token, query + "&last_event=1" * ("session" in query))
    assert (error["param"], code) == ("resume", 4400)


async def test_frames_without_resume_have_no_numbers(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token, "") as (ws, ready):
        await send(ws, type="start", id="c1", **chat())
        frames = await until(ws, ends("c1"))
    assert set(ready) == {"type", "tenant"}
    assert not any("event" in frame for frame in frames)


async def test_every_frame_of_a_request_has_its_number(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token, "resume=1") as (ws, _):
        await send(ws, type="start", id="c1", **chat())
        await send(ws, type="start", id="c2", **chat(model="none"))
        await send(ws, type="start", id="c3", what=1)
        await send(ws, type="ping", nonce=1)
        await send(ws, type="sing")
        frames: list[dict[str, Any]] = []
        while sum(frame["type"] in {"finished", "error"} for frame in frames) < 4:
            frames.append(await receive(ws))
    numbered = [frame for frame in frames if frame.get("id") is not None]
    assert [frame["event"] for frame in numbered] == list(range(1, len(numbered) + 1))
    others = [frame for frame in frames if frame.get("id") is None]
    assert {frame["type"] for frame in others} == {"pong", "error"}
    assert not any("event" in frame for frame in others)


async def test_a_foreign_and_an_unknown_session_are_told_alike(
    server: ServerRun, token: ApiToken
) -> None:
    session, event = await cut_off(server, token, keep_s=5)
    others = [await database_hop(ApiTokenFactory, tenant=token.tenant)]
    others.append(await database_hop(ApiTokenFactory))  # of another tenant
    unknown = await refusal(server, token, f"session=none&last_event={event}")
    assert (unknown[0]["code"], unknown[1]) == ("session_not_found", 4404)
    for other in others:
        assert await refusal(server, other, f"session={session}&last_event={event}") == unknown
    async with opened(server, token, f"session={session}&last_event={event}") as (ws, ready):
        assert ready["session"] == session
        assert (await until(ws, ends("c1")))[-1]["finish_reason"] == "length"


async def test_a_revoked_token_resumes_nothing(server: ServerRun, token: ApiToken) -> None:
    session, event = await cut_off(server, token, keep_s=5)
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)

    async def is_refused() -> bool:
        async with opened(server, token, f"session={session}&last_event={event}") as (ws, frame):
            return frame["type"] == "error" and await closed_with(ws) == 4401

    await wait_until_async("the revocation to be noticed", is_refused, timeout_s=3)


async def test_a_person_of_the_admin_comes_back(
    server: ServerRun, token: ApiToken, transactional_db: None
) -> None:
    user = await database_hop(UserFactory, admin=True, username="ann")
    await database_hop(MembershipFactory, user=user, tenant=token.tenant)
    headers = {"Cookie": f"sessionid={await asyncio.to_thread(session_cookie, server)}"}
    async with connect(
        f"{server.ws_url}?resume=5", additional_headers=headers, origin=server.base_url
    ) as ws:
        ready = await receive(ws)
        await send(ws, type="start", id="c1", **chat())
        await until(ws, lambda frame: frame["type"] == "started")
        ws.transport.abort()
    url = f"{server.ws_url}?session={ready['session']}&last_event=0"
    async with connect(url, additional_headers=headers, origin="http://evil.example") as ws:
        assert (await receive(ws))["error"]["code"] == "origin_not_allowed"
        assert await closed_with(ws) == 4403
    async with connect(url, additional_headers=headers, origin=server.base_url) as ws:
        assert await receive(ws) == ready
        assert (await until(ws, ends("c1")))[-1]["type"] == "finished"


async def test_nobody_comes_back_in_time(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    session, event = await cut_off(server, token, keep_s=1, **LONG)
    began_s = time.monotonic()
    assert engine_process.stats().n_running == 1, "it runs on for a while"
    outcome = await wait_until_async("the row to be settled", settled_outcome)
    assert outcome == "aborted"
    assert 0.5 < time.monotonic() - began_s < 5
    await wait_until_async("the engine to be idle", engine_process.is_idle)
    error, _ = await refusal(server, token, f"session={session}&last_event={event}")
    assert error["code"] == "session_not_found"


async def test_a_goodbye_ends_the_session_at_once(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    for code in (1000, 1001, 4000):
        async with opened(server, token, "resume=60") as (ws, ready):
            await send(ws, type="start", id="c1", **chat(**LONG))
            await until(ws, lambda frame: frame["type"] == "delta")
            await ws.close(code)
        await wait_until_async("the engine to be idle", engine_process.is_idle, timeout_s=3)
        error, _ = await refusal(server, token, f"session={ready['session']}&last_event=0")
        assert error["code"] == "session_not_found"


async def test_a_second_connection_takes_over(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token, "resume=5") as (first, ready):
        await send(first, type="start", id="c1", **chat(**LONG))
        started = (await until(first, lambda frame: frame["type"] == "started"))[-1]
        async with opened(server, token, f"session={ready['session']}&last_event=0") as (ws, again):
            assert again == ready
            assert await closed_with(first) == 4409
            assert await receive(ws) == started
            await send(ws, type="cancel", id="c1")
            assert (await until(ws, ends("c1")))[-1]["finish_reason"] == "cancelled"
            await send(ws, type="start", id="c1", **chat())
            assert (await until(ws, ends("c1")))[-1]["finish_reason"] == "length"
            await ws.close()


async def test_a_number_of_the_future(server: ServerRun, token: ApiToken) -> None:
    session, event = await cut_off(server, token, keep_s=5)
    error, code = await refusal(server, token, f"session={session}&last_event=1000000")
    assert (error["param"], error["code"], code) == ("last_event", "invalid_value", 4400)
    async with opened(server, token, f"session={session}&last_event={event}") as (ws, _):
        assert (await until(ws, ends("c1")))[-1]["type"] == "finished"


async def test_too_many_sessions(server: ServerRun, token: ApiToken) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(16):
            ws, _ = await stack.enter_async_context(opened(server, token, "resume=1"))
        error, code = await refusal(server, token, "resume=1")
        assert (error["code"], error["param"], code) == ("too_many_sessions", "resume", 4429)
        async with opened(server, token, "") as (_, ready):
            assert ready["type"] == "ready", "a connection without a session is another matter"
        await ws.close()
        async with opened(server, token, "resume=1") as (_, ready):
            assert ready["type"] == "ready"

    async def is_room() -> bool:
        async with contextlib.AsyncExitStack() as stack:
            opening = [opened(server, token, "resume=1") for _ in range(16)]
            readies = [await stack.enter_async_context(each) for each in opening]
            for ws, _ in readies:
                await ws.close()
        return all(ready["type"] == "ready" for _, ready in readies)

    await wait_until_async("all to be given back", is_room)


@pytest.mark.server_env(GATEWAY_STALL_TIMEOUT_S="1")
async def test_a_client_that_was_cut_off_for_not_reading_gets_everything(
    server: ServerRun, token: ApiToken
) -> None:
    """What lay in the buffers of the dead connection is in the session's window."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((server.host, server.port))
    raw.setblocking(False)
    headers = {"Authorization": f"Bearer {token.secret}"}
    async with connect(f"{server.ws_url}?resume=10", sock=raw, additional_headers=headers) as ws:
        session = (await receive(ws))["session"]
        ws.transport.pause_reading()
        how = {"max_tokens": 400, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
        await send(ws, type="start", id="c1", **chat(**how))
        await wait_until_async(
            "the client to be cut off", lambda: "was cut off" in server.log.read_text()
        )
        ws.transport.abort()
    async with opened(server, token, f"session={session}&last_event=0") as (ws, _):
        frames = await until(ws, ends("c1"))
        await ws.close()
    assert [frame["event"] for frame in frames] == list(range(1, len(frames) + 1))
    assert frames[-1]["usage"]["completion_tokens"] == 400
    n_bytes = sum(len(json.dumps(frame)) for frame in frames)
    assert n_bytes > 500_000, "more than the buffers of a connection hold"


@pytest.mark.server_env(GATEWAY_DRAIN_S="60")
async def test_shutdown_waits_for_no_session_that_is_away(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    await cut_off(server, token, keep_s=60, **LONG)
    async with opened(server, token, "resume=60"):
        server.process.send_signal(signal.SIGTERM)
        await wait_until_async("the engine to be idle", engine_process.is_idle, timeout_s=5)
        assert await wait_until_async("the row to be settled", settled_outcome) == "aborted"
        assert await asyncio.to_thread(server.process.wait, 20) == 0
