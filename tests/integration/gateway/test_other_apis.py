"""/v1/responses and /v1/messages in this process: the ledger, bad ends, and who may come in."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.engines.models import EngineProcess
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from tests.integration.gateway.conftest import MODEL
from tests.models import random_llama_dir
from tests.processes import CONTEXT_LENGTH, EngineRun, running_engine
from tests.rows import all_of
from tests.waiting import wait_until_async

RESPONSES: dict[str, Any] = {"model": MODEL, "input": "Hello", "temperature": 0}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
}


def events_of(body: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a whole stream, comments left out."""
    found = []
    for block in body.split("\n\n"):
        if block.startswith("event: "):
            name, _, data = block.partition("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {**RESPONSES, "max_output_tokens": 8}),
        ("/v1/messages", {**MESSAGES, "max_tokens": 8, "temperature": 0}),
    ],
)
async def test_the_ledger_knows_them(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    [row] = await database_hop(lambda: list(all_of(UsageRecord).all()))
    assert row.request_id == answer["id"] == response.headers["x-request-id"]
    assert (row.endpoint, row.outcome) == (path.removeprefix("/v1/"), "completed")
    assert row.n_completion_tokens == answer["usage"]["output_tokens"] == 8
    # <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n, one token a byte or mark
    assert row.n_prompt_tokens == 24


async def test_what_is_counted_is_not_charged(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/messages/count_tokens", json=MESSAGES)
    assert response.json() == {"input_tokens": 24}
    assert await database_hop(all_of(UsageRecord).count) == 0


async def test_the_key_header_is_for_messages_only(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    del http.headers["authorization"]
    key = {"x-api-key": token.secret}
    assert (await http.post("/v1/responses", json=RESPONSES, headers=key)).status_code == 401
    counted = await http.post("/v1/messages/count_tokens", json=MESSAGES, headers=key)
    assert counted.status_code == 200
    for headers in ({}, {"x-api-key": "wrong"}, {"x-api-key": "\xe9".encode()}):
        refused = await http.post("/v1/messages/count_tokens", json=MESSAGES, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
    # A wrong key is not mended by what another header says.
    http.headers["authorization"] = f"Bearer {token.secret}"
    wrong = {"x-api-key": "wrong"}
    refused = await http.post("/v1/messages/count_tokens", json=MESSAGES, headers=wrong)
    assert refused.status_code == 401


async def test_errors_of_messages_have_their_own_body(http: httpx.AsyncClient) -> None:
    for response, status, kind in (
        (await http.get("/v1/messages"), 405, "invalid_request_error"),
        (await http.post("/v1/messages", content=b"{}"), 415, "invalid_request_error"),
        (await http.post("/v1/messages", json={}), 400, "invalid_request_error"),
        (
            await http.post("/v1/messages", json={**MESSAGES, "max_tokens": 1, "model": "x"}),
            404,
            "not_found_error",
        ),
    ):
        assert response.status_code == status
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == kind


async def killed_under(
    http: httpx.AsyncClient, directory: Path, path: str, body: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Kill the engine while it answers; return the events that there were."""
    model_dir = random_llama_dir(directory, max_position_embeddings=CONTEXT_LENGTH)
    with running_engine(model_dir, directory, "--dtype", "float32", epoch=5) as engine:
        socket_path = str(engine.socket_path)
        await database_hop(lambda: EngineProcess.objects.update(socket_path=socket_path, epoch=5))
        asking = asyncio.ensure_future(http.post(path, json={**body, "stream": True}))
        await wait_until_async("some tokens", lambda: has_begun(engine), timeout_s=30)
        os.kill(engine.process.pid, signal.SIGKILL)
        response = await asking
    assert response.status_code == 200
    [row] = await database_hop(lambda: list(all_of(UsageRecord).all()))
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "engine_unavailable")
    return events_of(response.text)


def has_begun(engine: EngineRun) -> bool:
    return engine.stats().n_completion_tokens > 20


async def test_a_response_whose_engine_dies_has_failed(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {**RESPONSES, "max_output_tokens": 8000}
    events = await killed_under(http, tmp_path, "/v1/responses", body)
    names = [name for name, _ in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert "response.output_text.delta" in names
    assert names[-1] == "response.failed"
    assert not {"response.completed", "response.incomplete", "response.output_item.done"} & {*names}
    last = events[-1][1]
    assert last["sequence_number"] == len(events) - 1
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    (item,) = last["response"]["output"]
    pieces = [event["delta"] for name, event in events if name == "response.output_text.delta"]
    assert item["content"][0]["text"] == "".join(pieces)


async def test_a_message_whose_engine_dies_ends_in_an_error(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {**MESSAGES, "max_tokens": 8000, "temperature": 0}
    events = await killed_under(http, tmp_path, "/v1/messages", body)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-1] == "error" and set(names[3:-1]) == {"content_block_delta"}
    assert events[-1][1]["error"]["type"] == "api_error"
