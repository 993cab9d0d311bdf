"""How requests with an ``Idempotency-Key`` end when something goes wrong: here, in another process,
with the client. What another process does is done by its own functions, on the same rows."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway import ledger_writer
from apps.gateway.idempotency import (
    Claim,
    KeptAnswer,
    NamedRequest,
    Running,
    answer_keep,
    request_claim,
    request_release,
)
from apps.gateway.models import IdempotentRequest
from apps.gateway.rest import idempotent_runs
from apps.gateway.runtime import GatewayRuntime
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_revoke
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.named import (
    CHAT,
    KEY,
    Leaver,
    as_elsewhere,
    as_sent_again,
    changed,
    failing,
    is_replayed,
    n_charged,
    refused,
    rows,
)
from tests.processes import LONG_ANSWER, EngineRun, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async


async def test_what_failed_before_it_was_done_runs_again(
    http: httpx.AsyncClient, runtime: GatewayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = chat(model="no/such")
    response = await http.post(CHAT, json=chat(), headers={**KEY, "Authorization": "Bearer wrong"})
    assert response.status_code == 401
    for body, status in ((unknown, 404), (chat(temperature=9), 400)):
        response = await http.post(CHAT, json=body, headers=KEY)
        assert (response.status_code, is_replayed(response)) == (status, False)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_writer, "reserve", failing)
        response = await http.post(CHAT, json=chat(), headers=KEY)
    assert refused(response) == (503, "unavailable", None)
    runtime.is_draining = True
    response = await http.post(CHAT, json=chat(), headers=KEY)
    runtime.is_draining = False
    assert refused(response) == (503, "server_shutting_down", None)
    assert (await rows(), await n_charged(), runtime.named) == ([], 0, {})
    first = await http.post(CHAT, json=chat(), headers=KEY)
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))
    assert await n_charged() == 1


def is_charged(n: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return await n_charged() == n

    return look


async def test_a_stream_that_fails_on_its_way_runs_again(
    http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    body = chat(stream=True, max_tokens=LONG_ANSWER, ignore_eos=True)
    asking = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await wait_until_async("the request to run", is_charged(1))
    waiting = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await asyncio.sleep(0)
    runtime.interrupt_all()
    assert "server_shutting_down" in (await asking).text
    await wait_until_async("the one that waited to run", is_charged(2))
    runtime.interrupt_all()
    assert not is_replayed(await waiting)
    assert (await rows(), await n_charged(), runtime.named) == ([], 2, {})


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_left_may_ask_again(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    engine_process: EngineRun,
    token: ApiToken,
    is_streamed: bool,
) -> None:
    body = chat(stream=is_streamed, max_tokens=LONG_ANSWER, ignore_eos=True)
    leaver = Leaver(body, token)
    asking = asyncio.create_task(leaver.ask())
    await wait_until_async(
        "the request to run", lambda: bool(runtime.live) and leaver.n_parts >= 3 * is_streamed
    )
    assert [row.state for row in await rows()] == ["running"]
    leaver.leave()
    await asyncio.wait_for(asking, 5)
    assert (await rows(), runtime.named) == ([], {})
    await wait_until_async("the engine to be idle", engine_process.is_idle)
    first = await http.post(CHAT, json=chat(), headers=KEY)
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))


async def test_a_client_that_leaves_while_the_key_is_claimed_leaves_no_claim(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    token: ApiToken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(named: NamedRequest) -> Any:
        begun.set()
        assert go_on.wait(10)
        return request_claim(named)

    monkeypatch.setattr(idempotent_runs, "request_claim", slowly)
    leaver = Leaver(chat(), token)
    asking = asyncio.create_task(leaver.ask())
    await wait_until_async("the claim to begin", begun.is_set)
    leaver.leave()
    await wait_until_async("the news of it", lambda: asking.cancelling() > 0)
    go_on.set()
    await asyncio.wait_for(asking, 5)
    assert (await rows(), await n_charged(), runtime.named) == ([], 0, {})


async def test_of_fifty_claims_at_once_one_holds(http: httpx.AsyncClient, token: ApiToken) -> None:
    """Over as many connections as there are; then of a run that is dead."""
    named, claim = await as_elsewhere(http, token)
    for _ in range(2):
        await changed(lease_until=timezone.now())
        found = await asyncio.gather(*(database_hop(request_claim, named) for _ in range(50)))
        (holder,) = (each for each in found if isinstance(each, Claim))
        assert [each for each in found if each is not holder] == [Running()] * 49
        assert holder != claim
        assert not await database_hop(request_release, claim)
        claim = holder
    assert await database_hop(request_release, claim)
    found = await asyncio.gather(*(database_hop(request_claim, named) for _ in range(50)))
    assert sum(isinstance(each, Claim) for each in found) == len(await rows()) == 1


async def test_another_process_has_it_in_hand(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, settings: Any
) -> None:
    _, claim = await as_elsewhere(http, token)
    n_before = await n_charged()
    settings.GATEWAY_IDEMPOTENCY_WAIT_S = 0.4
    many = [http.post(CHAT, json=chat(), headers=KEY) for _ in range(5)]
    for response in await asyncio.gather(*many):
        assert refused(response) == (409, "idempotency_key_in_use", "Idempotency-Key")
        assert (response.headers["retry-after"], response.headers["x-should-retry"]) == (
            "1",
            "true",
        )
    settings.GATEWAY_IDEMPOTENCY_WAIT_S = 30
    waiting = [asyncio.create_task(http.post(CHAT, json=chat(), headers=KEY)) for _ in range(5)]
    await wait_until_async("them to wait", lambda: bool(runtime.named))
    headers = {"Content-Type": "application/json", "X-Request-Id": "chatcmpl-elsewhere"}
    answer = KeptAnswer(status=200, headers=headers, body=b'{"made": "elsewhere"}')
    assert await database_hop(answer_keep, claim, answer)
    for response in await asyncio.gather(*waiting):
        assert (response.status_code, is_replayed(response)) == (200, True)
        assert response.content == b'{"made": "elsewhere"}'
        assert response.headers["x-request-id"] == "chatcmpl-elsewhere"
    assert await n_charged() == n_before


@pytest.mark.parametrize("is_answered", [False, True])
async def test_who_loses_access_while_waiting_gets_nothing(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, is_answered: bool
) -> None:
    _, claim = await as_elsewhere(http, token)
    n_before = await n_charged()
    waiting = asyncio.create_task(http.post(CHAT, json=chat(), headers=KEY))
    await wait_until_async("it to wait", lambda: bool(runtime.named))
    generation = runtime.access.generation
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)
    await wait_until_async("the news", lambda: runtime.access.generation > generation)
    if is_answered:
        await database_hop(answer_keep, claim, KeptAnswer(status=200, headers={}, body=b"{}"))
    else:
        await database_hop(request_release, claim)
    response = await waiting
    assert refused(response) == (401, "access_revoked", None)
    assert (await n_charged(), runtime.named) == (n_before, {})
    assert [row.state for row in await rows()] == ["kept"] * is_answered


async def test_what_another_process_gave_up_runs_here(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    _, claim = await as_elsewhere(http, token)
    waiting = asyncio.create_task(http.post(CHAT, json=chat(), headers=KEY))
    await wait_until_async("them to wait", lambda: bool(runtime.named))
    assert await database_hop(request_release, claim)
    response = await waiting
    assert (response.status_code, is_replayed(response)) == (200, False)


@pytest.mark.server_env(GATEWAY_STALL_TIMEOUT_S="30")
async def test_a_server_answers_for_another_and_may_be_killed(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    server: ServerRun,
    engine_process: EngineRun,
    token: ApiToken,
    settings: Any,
) -> None:
    """The server runs; this process waits, and takes over."""

    headers = {"Authorization": f"Bearer {token.secret}"}  # type: ignore[attr-defined]
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=60) as there:
        # From now on the server has a connection to the engine, which may then stand for a while.
        words = {"model": MODEL, "prompt": "Hello"}
        assert (await there.post("/tokenize", json=words)).status_code == 200
        body = chat(max_tokens=1000, ignore_eos=True)
        with engine_process.frozen():
            running = asyncio.create_task(there.post(CHAT, json=body, headers=KEY))
            await wait_until_async("the server to run it", rows, timeout_s=20)
            waiting = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
            await wait_until_async("this process to wait", lambda: bool(runtime.named))
            assert [row.state for row in await rows()] == ["running"]
        as_sent_again(await running, await waiting)
        assert await n_charged() == 1

        await database_hop(all_of(IdempotentRequest).all().delete)
        body = chat(max_tokens=LONG_ANSWER, ignore_eos=True)
        running = asyncio.create_task(there.post(CHAT, json=body, headers=KEY))
        await wait_until_async("the server to run another", is_charged(2), timeout_s=60)
        server.process.kill()
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await running
    settings.GATEWAY_IDEMPOTENCY_WAIT_S = 0
    assert (await http.post(CHAT, json=body, headers=KEY)).status_code == 409
    await changed(lease_until=timezone.now())
    running = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await wait_until_async("it to run here", is_charged(3), timeout_s=60)
    running.cancel()
    await asyncio.wait({running})
    assert (await rows(), await n_charged()) == ([], 3)


async def test_a_killed_servers_request_runs_again_once_its_lease_is_over(
    http: httpx.AsyncClient, token: ApiToken, settings: Any
) -> None:
    settings.GATEWAY_IDEMPOTENCY_WAIT_S = 0
    _, claim = await as_elsewhere(http, token)
    (row,) = await rows()
    lease_s = (row.lease_until - row.created_at).total_seconds()
    assert lease_s == settings.GATEWAY_REQUEST_TIMEOUT_S + 90
    assert (await http.post(CHAT, json=chat(), headers=KEY)).status_code == 409
    await changed(lease_until=timezone.now() - timedelta(seconds=1))
    other = await http.post(CHAT, json=chat("Hullo"), headers=KEY)
    assert refused(other)[:2] == (422, "idempotency_key_reused")
    first = await http.post(CHAT, json=chat(), headers=KEY)
    # The one that was thought dead writes nothing any more.
    late = KeptAnswer(status=200, headers={}, body=b"late")
    assert not await database_hop(answer_keep, claim, late)
    assert not await database_hop(request_release, claim)
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))


async def test_with_the_database_away_nothing_runs(
    http: httpx.AsyncClient, engine_process: EngineRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await http.get("/v1/models")).status_code == 200  # the token is known from now on
    before = engine_process.stats()
    with monkeypatch.context() as patch:
        patch.setattr(idempotent_runs, "request_claim", failing)
        response = await http.post(CHAT, json=chat(), headers=KEY)
    assert refused(response) == (503, "unavailable", None)
    assert response.headers["retry-after"] == "1"
    assert engine_process.stats().n_prompt_tokens == before.n_prompt_tokens
    assert (await rows(), await n_charged()) == ([], 0)
    assert (await http.post(CHAT, json=chat(), headers=KEY)).status_code == 200


async def test_an_answer_is_kept_once_the_database_is_back(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter([True, True])

    def fail_twice(claim: Claim, answer: KeptAnswer) -> bool:
        if next(attempts, False):
            failing()
        return answer_keep(claim, answer)

    monkeypatch.setattr(idempotent_runs, "answer_keep", fail_twice)
    monkeypatch.setattr(idempotent_runs, "WRITE_AGAIN_S", 0.05)
    first = await http.post(CHAT, json=chat(), headers=KEY)
    as_sent_again(first, await http.post(CHAT, json=chat(), headers=KEY))
    assert await n_charged() == 1
