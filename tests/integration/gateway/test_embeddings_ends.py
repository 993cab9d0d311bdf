"""What becomes of a request for vectors when its client, its engine, its server or its database
goes away, or its time is up."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from django.db import OperationalError

from apps.core.hop import database_hop
from apps.core.models import ChangeStamp
from apps.gateway import ledger, ledger_writer
from apps.gateway.runtime import GatewayRuntime
from apps.metering.services import settle
from apps.metering.types import Settlement
from apps.rbac.models import ApiToken
from tests.integration.gateway.embedding import MANY, MODEL, only_row, route_to
from tests.models import minilm_dir
from tests.processes import EngineRun, ServerRun, running_engine
from tests.waiting import wait_until, wait_until_async


async def test_a_client_that_leaves_ends_it_in_the_engine_and_the_ledger(
    embedding_route: str, server: ServerRun, token: ApiToken, embedding_engine: EngineRun
) -> None:
    before = embedding_engine.stats()
    content = json.dumps({"model": MODEL, "input": MANY}).encode()
    _, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (token.secret.encode(), len(content), content)
    )
    await wait_until_async(
        "the request to run", lambda: embedding_engine.stats().n_waiting == 1, timeout_s=30
    )
    row = await only_row()
    assert (row.state, row.n_reserved_tokens) == ("reserved", 600 * 252)
    writer.transport.abort()
    await wait_until_async("the engine to drop it", lambda: embedding_engine.stats().n_waiting == 0)
    after = embedding_engine.stats()
    assert (after.n_aborted, after.n_finished) == (before.n_aborted + 1, before.n_finished)

    async def is_settled() -> bool:
        return (await only_row()).state == "settled"

    await wait_until_async("the row to be settled", is_settled)
    row = await only_row()
    assert (row.outcome, row.error_code) == ("aborted", "client_disconnected")
    assert row.n_prompt_tokens == 600 * 252


async def ended_by(
    http: httpx.AsyncClient, engine: EngineRun, end: Callable[[], object]
) -> httpx.Response:
    """Start a long request, do something about it, and return its answer."""
    body = {"model": MODEL, "input": MANY}
    asking = asyncio.ensure_future(http.post("/v1/embeddings", json=body))
    await wait_until_async(
        "the request to run", lambda: engine.stats().n_waiting == 1, timeout_s=30
    )
    end()
    return await asking


async def test_the_engine_dies_under_it(
    route: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    with running_engine(minilm_dir(), tmp_path, epoch=5) as engine:
        await database_hop(route_to, engine)
        await database_hop(
            lambda: ChangeStamp.objects.filter(name="routes").update(value=time.time_ns())
        )
        response = await ended_by(http, engine, lambda: os.kill(engine.process.pid, signal.SIGKILL))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "engine_unavailable"
    row = await only_row()
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "engine_unavailable")


async def test_this_process_stops_meanwhile(
    embedding_route: str,
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    embedding_engine: EngineRun,
) -> None:
    response = await ended_by(http, embedding_engine, runtime.interrupt_all)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_shutting_down"
    row = await only_row()
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "server_shutting_down")
    assert runtime.live == set()
    wait_until("the engine to be idle", embedding_engine.is_idle)


async def test_a_request_has_a_deadline(
    embedding_route: str, http: httpx.AsyncClient, embedding_engine: EngineRun, settings: Any
) -> None:
    settings.GATEWAY_REQUEST_TIMEOUT_S = 3
    response = await http.post("/v1/embeddings", json={"model": MODEL, "input": MANY})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    row = await only_row()
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "request_timeout")
    wait_until("the engine to be idle", embedding_engine.is_idle)


async def test_the_database_is_away_before_and_after(
    embeddings: openai.AsyncOpenAI, embedding_engine: EngineRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("the database is away")

    before = embedding_engine.stats()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_writer, "reserve", fail)
        with pytest.raises(openai.InternalServerError) as refused:
            await embeddings.embeddings.create(model=MODEL, input="a")
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")
    assert embedding_engine.stats().n_finished == before.n_finished
    attempts = iter([OperationalError("the database is away")] * 2)

    def fail_twice(settlement: Settlement) -> bool:
        if (error := next(attempts, None)) is not None:
            raise error
        return settle(settlement)

    monkeypatch.setattr(ledger_writer, "settle", fail_twice)
    monkeypatch.setattr(ledger, "SETTLE_AGAIN_S", 0.05)
    assert (await embeddings.embeddings.create(model=MODEL, input="a")).usage.total_tokens == 3

    async def is_settled() -> bool:
        row = await only_row()
        return (row.state, row.outcome, row.n_prompt_tokens) == ("settled", "completed", 3)

    await wait_until_async("the row to be settled after all", is_settled, timeout_s=5)
