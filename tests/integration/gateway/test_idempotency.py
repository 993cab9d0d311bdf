"""Requests with an ``Idempotency-Key`` through the doors in this process, against a real engine."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway.idempotency import expired_delete
from apps.gateway.tasks import forget
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_revoke
from tests.factories.access import ApiTokenFactory
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.named import (
    CHAT,
    KEY,
    as_sent_again,
    changed,
    is_replayed,
    n_charged,
    refused,
    rows,
)
from tests.processes import EngineRun
from tests.waiting import wait_until_async

BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    "/v1/completions": {"model": MODEL, "prompt": ["Hello", "There"], "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 16},
    "/v1/messages": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
    },
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_the_answer_comes_again_byte_for_byte_and_is_charged_once(
    http: httpx.AsyncClient, engine_process: EngineRun, path: str, is_streamed: bool
) -> None:
    body = BODIES[path] | ({"stream": True} if is_streamed else {})
    first = await http.post(path, json=body, headers=KEY)
    n_rows, stats = await n_charged(), engine_process.stats()
    again = await http.post(path, json=body, headers=KEY)
    as_sent_again(first, again)
    assert first.headers["content-type"].startswith(
        "text/event-stream" if is_streamed else "application/json"
    )
    assert await n_charged() == n_rows == (2 if path == "/v1/completions" else 1)
    assert engine_process.stats().n_prompt_tokens == stats.n_prompt_tokens
    unnamed = await http.post(path, json=body)
    assert not is_replayed(unnamed)
    assert unnamed.headers["x-request-id"] != first.headers["x-request-id"]
    (row,) = await rows()
    assert (row.state, row.status, bytes(row.body)) == ("kept", 200, first.content)
    assert timedelta(hours=23) < row.expires_at - timezone.now() < timedelta(hours=24)


async def test_a_key_names_one_request(http: httpx.AsyncClient) -> None:
    first = await http.post(CHAT, json=chat(), headers=KEY)
    (row,) = await rows()
    for path, body in (
        (CHAT, chat("Hullo")),
        (CHAT, chat(stream=True)),
        ("/v1/completions", chat()),
        ("/v1/batches/batch-0/cancel", chat()),
    ):
        response = await http.post(path, json=body, headers=KEY)
        assert refused(response) == (422, "idempotency_key_reused", "Idempotency-Key")
        assert response.headers["x-should-retry"] == "false"
    response = await http.post("/v1/messages", json=chat(), headers=KEY)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "Idempotency-Key")
    assert await n_charged() == 1
    (same,) = await rows()
    assert (same.fingerprint, same.owner) == (row.fingerprint, row.owner)
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))


async def test_nobody_gets_the_answer_of_another_token(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    def others() -> tuple[ApiToken, ApiToken]:
        return ApiTokenFactory(tenant=token.tenant), ApiTokenFactory()

    first = await http.post(CHAT, json=chat(), headers=KEY)
    ids = {first.headers["x-request-id"]}
    for other in await database_hop(others):
        headers = {**KEY, "Authorization": f"Bearer {other.secret}"}  # type: ignore[attr-defined]
        response = await http.post(CHAT, json=chat(), headers=headers)
        assert (response.status_code, is_replayed(response)) == (200, False)
        ids.add(response.headers["x-request-id"])
        as_sent_again(response, await http.post(CHAT, json=chat(), headers=headers))
    assert len(ids) == await n_charged() == 3
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_of_fifty_at_once_one_runs(http: httpx.AsyncClient, is_streamed: bool) -> None:
    body = chat(stream=is_streamed, max_tokens=64, ignore_eos=True)
    answers = await asyncio.gather(*(http.post(CHAT, json=body, headers=KEY) for _ in range(50)))
    (first,) = (each for each in answers if not is_replayed(each))
    for each in answers:
        if each is not first:
            as_sent_again(first, each)
    assert await n_charged() == 1


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_that_is_too_large_is_made_once_and_not_kept(
    http: httpx.AsyncClient, settings: Any, is_streamed: bool
) -> None:
    settings.GATEWAY_IDEMPOTENCY_MAX_BYTES = 300
    body = chat(stream=is_streamed)
    first = await http.post(CHAT, json=body, headers=KEY)
    assert (first.status_code, len(first.content) > 300) == (200, True)
    again = await http.post(CHAT, json=body, headers=KEY)
    assert refused(again) == (409, "idempotent_answer_not_kept", "Idempotency-Key")
    assert again.headers["x-should-retry"] == "false"
    assert "retry-after" not in again.headers
    (row,) = await rows()
    assert (row.state, bytes(row.body), row.headers) == ("too_large", b"", {})
    assert await n_charged() == 1


@pytest.mark.parametrize("key", ["", "a b", "é", "k" * 256, "a\tb"])
async def test_a_key_is_visible_ascii(http: httpx.AsyncClient, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin1")}
    response = await http.post(CHAT, json=chat(), headers=headers)
    assert refused(response) == (400, "invalid_idempotency_key", "Idempotency-Key")
    assert (await rows(), await n_charged()) == ([], 0)


async def test_the_longest_key_and_one_in_quotes(http: httpx.AsyncClient) -> None:
    for key in ("k" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "!~"):
        headers = {"Idempotency-Key": key}
        first = await http.post(CHAT, json=chat(), headers=headers)
        as_sent_again(first, await http.post(CHAT, json=chat(), headers=headers))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What every thread says to the database about requests, from now on."""
    found: list[str] = []
    execute = CursorWrapper.execute

    def noted(self: CursorWrapper, sql: Any, params: Any = None) -> Any:
        if any(name in str(sql) for name in ("metering_", "gateway_")):
            found.append(str(sql).split(maxsplit=1)[0])
        return execute(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", noted)
    yield found


async def test_it_costs_two_statements_and_nothing_without_a_key(
    http: httpx.AsyncClient, statements: list[str]
) -> None:
    await http.post(CHAT, json=chat())  # the meters are there from now on

    async def cost(headers: dict[str, str]) -> list[str]:
        statements.clear()
        assert (await http.post(CHAT, json=chat(), headers=headers)).status_code == 200
        return list(statements)

    plain = await cost({})
    assert await cost(KEY) == ["INSERT", *plain, "UPDATE"]
    assert await cost(KEY) == ["INSERT", "SELECT"]
    response = await http.post("/tokenize", json={"model": MODEL, "prompt": "a"}, headers=KEY)
    assert response.status_code == 200
    assert len(await rows()) == 1


async def test_a_key_is_free_after_a_day_and_its_row_is_dropped(
    http: httpx.AsyncClient, settings: Any
) -> None:
    first = await http.post(CHAT, json=chat(), headers=KEY)
    await changed(expires_at=timezone.now())
    other = await http.post(CHAT, json=chat("Hullo"), headers=KEY)
    assert (other.status_code, is_replayed(other)) == (200, False)
    assert other.content != first.content
    await database_hop(forget)
    assert len(await rows()) == 1
    for number in range(3):
        await http.post(CHAT, json=chat(), headers={"Idempotency-Key": f"{number}"})
    await changed(expires_at=timezone.now())
    assert await database_hop(lambda: expired_delete(now=timezone.now(), limit=3)) == 3
    await database_hop(forget)
    assert await rows() == []
    assert forget.name in {each["task"] for each in settings.CELERY_BEAT_SCHEDULE.values()}


async def test_a_revoked_token_gets_no_answer_again(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await http.post(CHAT, json=chat(), headers=KEY)
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)

    async def is_refused() -> bool:
        response = await http.post(CHAT, json=chat(), headers=KEY)
        return response.status_code == 401 and not is_replayed(response)

    await wait_until_async("the revocation to be noticed", is_refused, timeout_s=3)
    assert await n_charged() == 1
