"""/v1/stream over the real server."""

import asyncio
import contextlib
import json
import signal
import socket
from pathlib import Path

import httpx
import pytest
from django.utils import timezone
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_update
from apps.routing.models import RouteTarget
from apps.tenants.models import Tenant
from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.factories.routing import RouteFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.failing_over import said
from tests.integration.gateway.streams import closed_with, ends, opened, receive, send, until
from tests.processes import LONG_ANSWER, EngineRun, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async

LONG = {"max_tokens": LONG_ANSWER, "ignore_eos": True}


async def test_one_request(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as ws:
        await send(ws, type="start", id="c1", **chat())
        started, *deltas, finished = await until(ws, ends("c1"))
    async with httpx.AsyncClient(timeout=20) as http:
        response = await http.post(
            f"{server.base_url}/v1/chat/completions",
            json=chat(),
            headers={"Authorization": f"Bearer {token.secret}"},
        )
    whole = response.json()
    assert started["type"] == "started"
    assert started["n_prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert "fallback" not in started
    assert {frame["type"] for frame in deltas} == {"delta"}
    text = "".join(frame["text"] for frame in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert finished["finish_reason"] == "length"
    assert finished["usage"]["completion_tokens"] == 8
    row = await database_hop(lambda: all_of(UsageRecord).get(door="websocket"))
    assert (row.request_id, row.outcome) == (started["request_id"], "completed")


async def test_it_says_which_fallback_answers(
    server: ServerRun, token: ApiToken, tmp_path: Path
) -> None:
    await database_hop(_gone_but_for_a_fallback, tmp_path / "nothing.sock")
    url = f"{server.base_url}/v1/models/lab/gone"
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token.secret}"}) as http:

        async def is_seen() -> bool:
            return (await http.get(url)).status_code == 200

        await wait_until_async("the server to see the route", is_seen)
    async with opened(server, token) as ws:
        await send(ws, type="start", id="c1", **chat() | {"model": "lab/gone"})
        started, *_, finished = await until(ws, ends("c1"))
    assert (started["type"], started["fallback"]) == ("started", "tiny")
    assert finished["finish_reason"] == "length"


def _gone_but_for_a_fallback(socket_path: Path) -> None:
    gone = DeploymentFactory(name="gone")
    process = EngineProcessFactory(ready=True, name="gone-0", socket_path=str(socket_path))
    ReplicaFactory(deployment=gone, index=0, engine_process=process)
    route = RouteFactory(name="lab/gone", deployment=gone)
    tiny = Deployment.objects.get(name="tiny")
    RouteTarget.objects.create(route=route, deployment=tiny, fallback_order=1)
    said()


async def test_token_in_the_first_frame(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, None) as ws:
        await send(ws, type="auth", token=token.secret)
        slug = await database_hop(lambda: Tenant.objects.get().slug)
        assert await receive(ws) == {"type": "ready", "tenant": slug}
        await send(ws, type="auth", token=token.secret)
        assert (await receive(ws))["error"]["code"] == "invalid_frame"
        await send(ws, type="ping", nonce=5)
        assert await receive(ws) == {"type": "pong", "nonce": 5}


async def test_wrong_header(server: ServerRun) -> None:
    for header in ("Bearer sk-nano-wrong", "Bearer", "Basic x"):
        async with connect(server.ws_url, additional_headers={"Authorization": header}) as ws:
            error = await receive(ws)
            assert (error["type"], error["id"]) == ("error", None)
            assert await closed_with(ws) == 4401


async def test_wrong_token_in_the_first_frame(server: ServerRun) -> None:
    async with opened(server, None) as ws:
        await send(ws, type="auth", token="sk-nano-wrong")
        assert (await receive(ws))["error"]["code"] == "invalid_api_key"
        assert await closed_with(ws) == 4401


async def test_start_without_authentication(server: ServerRun) -> None:
    async with opened(server, None) as ws:
        await send(ws, type="start", id="c1", **chat())
        assert (await receive(ws))["error"]["code"] == "missing_api_key"
        assert await closed_with(ws) == 4401


async def test_expired_token_starts_nothing_more(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as ws:
        token.expires_at = timezone.now()
        await database_hop(api_token_update, token=token, actor=SYSTEM)

        async def is_refused() -> bool:
            await send(ws, type="start", id="c1", **chat())
            return bool((await until(ws, ends("c1")))[-1]["type"] == "error")

        await wait_until_async("the expiry to be noticed", is_refused, timeout_s=3)


async def test_requests_run_side_by_side_and_one_is_cancelled(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async with opened(server, token) as ws:
        await send(ws, type="start", id="long", **chat(**LONG))
        await until(ws, lambda frame: frame["type"] == "delta")
        await send(ws, type="start", id="short", **chat())
        await until(ws, ends("short"))
        assert engine_process.stats().n_running == 1
        await send(ws, type="cancel", id="long")
        await send(ws, type="cancel", id="unknown")
        finished = (await until(ws, ends("long")))[-1]
        assert (finished["type"], finished["finish_reason"]) == ("finished", "cancelled")
        usage = finished["usage"]
        assert usage["prompt_tokens"] == 24 and 0 < usage["completion_tokens"] < LONG_ANSWER
        await wait_until_async("the engine to be idle", engine_process.is_idle)
        await send(ws, type="ping", nonce="x")
        assert await receive(ws) == {"type": "pong", "nonce": "x"}
    row = await database_hop(lambda: all_of(UsageRecord).get(outcome="aborted"))
    assert row.n_completion_tokens == usage["completion_tokens"]


async def test_cancel_at_once(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async with opened(server, token) as ws:
        for index in range(10):
            await send(ws, type="start", id=f"c{index}", **chat(**LONG))
            await send(ws, type="cancel", id=f"c{index}")
        for index in range(10):
            await send(ws, type="ping", nonce=index)
        ended = []
        while len(ended) < 10:
            frame = await receive(ws)
            if frame["type"] in {"finished", "error"}:
                ended.append(frame)
        assert {frame["finish_reason"] for frame in ended} == {"cancelled"}
        assert len({frame["id"] for frame in ended}) == 10
    await wait_until_async("the engine to be idle", engine_process.is_idle)

    async def are_settled() -> bool:
        return await database_hop(lambda: not all_of(UsageRecord).filter(state="reserved").exists())

    await wait_until_async("every row to be settled", are_settled)


async def test_a_taken_id_and_too_many(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as ws:
        for index in range(16):
            await send(ws, type="start", id=f"c{index}", **chat(**LONG))
        await send(ws, type="start", id="c0", **chat())
        [*_, taken] = await until(ws, lambda frame: frame["type"] == "error")
        assert (taken["id"], taken["error"]["code"]) == (None, "duplicate_id")
        await send(ws, type="start", id="c16", **chat())
        [*_, refused] = await until(ws, lambda frame: frame["type"] == "error")
        assert refused["id"] == "c16"
        assert refused["error"]["code"] == "too_many_requests_on_connection"


WRONG_FRAMES: list[tuple[str | bytes, str | None, str, str | None]] = [
    ("{", None, "invalid_json", None),
    ('{"type": "sing"}', None, "invalid_value", "type"),
    ('{"type": "start", "id": "c1"}', "c1", "missing_required_parameter", "model"),
    ('{"type": "start", "id": ""}', None, "invalid_value", "id"),
    ('{"type": "start", "id": "c1", "what": 1}', "c1", "unknown_parameter", "what"),
    ('{"type": "start", "id": "c1", "stream": true}', "c1", "unknown_parameter", "stream"),
    (json.dumps({"type": "start", "id": "c1", **chat(n=10_000)}), "c1", "invalid_value", "n"),
    (
        json.dumps({"type": "start", "id": "c1", **chat(model="none")}),
        "c1",
        "model_not_found",
        "model",
    ),
    (
        json.dumps({"type": "start", "id": "c1", **chat(max_tokens=0)}),
        "c1",
        "invalid_value",
        "max_tokens",
    ),
    (b"\x00\x01", None, "invalid_frame", None),
]


async def test_wrong_frames_end_no_connection(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as ws:
        for frame, client_id, code, param in WRONG_FRAMES:
            await ws.send(frame)
            error = await receive(ws)
            found = (error["id"], error["error"]["code"], error["error"]["param"])
            assert found == (client_id, code, param)
        await send(ws, type="start", id="c1", **chat())
        assert (await until(ws, ends("c1")))[-1]["type"] == "finished"


@pytest.mark.server_env(GATEWAY_MAX_BODY_BYTES="20000")
async def test_a_frame_over_the_bound(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as ws:
        await ws.send("x" * 30_000)
        assert await closed_with(ws) == 1009


@pytest.mark.parametrize("how", ["closes", "closes unread", "vanishes"])
async def test_closing_aborts_every_request(
    server: ServerRun, token: ApiToken, engine_process: EngineRun, how: str
) -> None:
    async with opened(server, token) as ws:
        for index in range(3):
            await send(ws, type="start", id=f"c{index}", **chat(**LONG))
        await wait_until_async("all to run", lambda: engine_process.stats().n_running == 3)
        if how == "vanishes":
            ws.transport.abort()
        elif how == "closes unread":
            ws.transport.pause_reading()
        closing = asyncio.create_task(ws.close())
        await wait_until_async("the engine to be idle", engine_process.is_idle, timeout_s=3)
        ws.transport.abort()
        await closing

    async def outcomes() -> list[str]:
        rows = await database_hop(lambda: list(all_of(UsageRecord).filter(state="settled")))
        return [row.outcome for row in rows] if len(rows) == 3 else []

    assert await wait_until_async("the rows to be settled", outcomes) == ["aborted"] * 3


@pytest.mark.server_env(GATEWAY_STALL_TIMEOUT_S="1")
async def test_a_client_that_stops_reading_is_cut_off(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((server.host, server.port))
    raw.setblocking(False)
    headers = {"Authorization": f"Bearer {token.secret}"}
    async with connect(server.ws_url, sock=raw, additional_headers=headers) as ws:
        await receive(ws)
        ws.transport.pause_reading()
        for index in range(8):
            await send(ws, type="start", id=f"{index}", **chat(**LONG))
        await wait_until_async("a request to run", lambda: engine_process.stats().n_running > 0)
        await wait_until_async("the stall to end all", engine_process.is_idle, timeout_s=60)
        ws.transport.abort()


async def test_a_flood_of_frames_without_reading_is_bounded(
    server: ServerRun, token: ApiToken
) -> None:
    before = server.rss_bytes()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((server.host, server.port))
    raw.setblocking(False)
    headers = {"Authorization": f"Bearer {token.secret}"}
    async with connect(server.ws_url, sock=raw, additional_headers=headers) as ws:
        await receive(ws)
        ws.transport.pause_reading()
        frame = json.dumps({"type": "ping", "nonce": "n" * 60, "pad": "x" * 4000})

        async def flood() -> None:
            for _ in range(20_000):  # 80 MB, were it taken in
                await ws.send(frame)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(flood(), 3)
        assert server.rss_bytes() - before < 30_000_000
        ws.transport.abort()
    health = await asyncio.to_thread(httpx.get, f"{server.base_url}/healthz")
    assert health.status_code == 200


@pytest.mark.server_env(GATEWAY_DRAIN_S="1")
async def test_sigterm_ends_requests_in_band_then_closes(
    server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    async with opened(server, token) as ws, opened(server, token) as idle:
        await send(ws, type="start", id="c1", **chat(**LONG))
        await until(ws, lambda frame: frame["type"] == "delta")
        server.process.send_signal(signal.SIGTERM)
        error = (await until(ws, ends("c1")))[-1]
        assert error["error"]["code"] == "server_shutting_down"
        assert await closed_with(ws) == 1012
        assert await closed_with(idle) == 1012
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    await wait_until_async("the engine to be idle", engine_process.is_idle)


async def test_another_path(server: ServerRun) -> None:
    with pytest.raises(InvalidStatus):
        await connect(server.ws_url + "/other")
