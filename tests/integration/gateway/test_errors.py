"""What goes wrong, as the official client's typed exceptions and as the one error body."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from apps.core.exceptions import AppError
from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.routing.models import Route
from tests.integration.gateway.conftest import MODEL, chat
from tests.processes import CONTEXT_LENGTH, LONG_ANSWER, EngineRun
from tests.rows import all_of
from tests.waiting import wait_until, wait_until_async


def body_of(error: openai.APIStatusError) -> dict[str, Any]:
    body = error.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


async def n_rows() -> int:
    return await database_hop(all_of(UsageRecord).count)


async def test_wrong_token(client: openai.AsyncOpenAI) -> None:
    stranger = client.with_options(api_key="sk-nano-wrong")
    stranger._client = httpx.AsyncClient(
        transport=client._client._transport, base_url="http://testserver"
    )
    with pytest.raises(openai.AuthenticationError) as refused:
        await stranger.chat.completions.create(**chat())
    error = body_of(refused.value)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    assert await n_rows() == 0


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer \xe9\xe9"])
async def test_missing_or_malformed_token(http: httpx.AsyncClient, header: str) -> None:
    response = await http.post(
        "/v1/chat/completions",
        json=chat(),
        headers={"Authorization": header.encode("latin1")},  # type: ignore[dict-item]
    )
    assert response.status_code == 401
    assert response.json()["error"]["code"] in {"missing_api_key", "invalid_api_key"}


async def test_revoked_token_is_refused_soon(http: httpx.AsyncClient, token: ApiToken) -> None:
    from apps.audit.types import SYSTEM
    from apps.rbac.services import api_token_revoke

    assert (await http.get("/v1/models")).status_code == 200
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)

    async def is_refused() -> bool:
        return (await http.get("/v1/models")).status_code == 401

    await wait_until_async("the revocation to be noticed", is_refused, timeout_s=3)


async def test_unknown_model(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(**chat(model="no/such"))
    error = body_of(missing.value)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such")
    assert await n_rows() == 0


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": 0}, None, "max_tokens"),
        ({"max_tokens": -5}, None, "max_tokens"),
        ({"max_tokens": CONTEXT_LENGTH}, "context_length_exceeded", "max_tokens"),
        (
            {"max_tokens": None, "max_completion_tokens": CONTEXT_LENGTH},
            "context_length_exceeded",
            "max_completion_tokens",
        ),
        ({"temperature": 2.5}, None, "temperature"),
        ({"top_p": 0}, None, "top_p"),
        ({"top_k": -1}, None, "top_k"),
        ({"stop": ["a", "b", "c", "d", "e"]}, None, "stop"),
        ({"stop": ""}, None, "stop"),
        ({"n": 10_000}, "invalid_value", "n"),
        ({"messages": []}, "empty_array", "messages"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ],
)
async def test_bad_parameters(
    client: openai.AsyncOpenAI, fields: dict[str, Any], code: str | None, param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                **chat(stream=stream), extra_body={"max_tokens": 8, **fields}
            )
        error = body_of(refused.value)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert code is None or error["code"] == code
    assert await n_rows() == 0


async def test_prompt_beyond_the_context(client: openai.AsyncOpenAI) -> None:
    for text in ("x" * (CONTEXT_LENGTH + 1), "x" * 3_000_000):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**chat(text))
        error = body_of(refused.value)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_token_ids_outside_the_vocabulary(client: openai.AsyncOpenAI) -> None:
    for ids in ([1, 320], [-1], []):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=MODEL, prompt=ids)
        assert body_of(refused.value)["param"] == "prompt"


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "code"),
    [
        ("POST", "/v1/chat/completions", {}, b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {}, b"", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {}, b"[]", 400, "invalid_type"),
        (
            "POST",
            "/v1/chat/completions",
            {"Content-Type": "text/plain"},
            b"{}",
            415,
            "unsupported_media_type",
        ),
        ("GET", "/v1/chat/completions", {}, None, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", {}, None, 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", {}, None, 405, "method_not_allowed"),
        ("GET", "/v1/embeddings", {}, None, 405, "method_not_allowed"),
        ("GET", "/v1", {}, None, 404, "not_found"),
        ("GET", "/v1/models/", {}, None, 404, "not_found"),
        ("GET", "/v1/models?x=%ff", {}, None, 200, None),
        ("POST", "/v1/completions", {}, b" " * 5_000_000, 413, "payload_too_large"),
    ],
)
async def test_refusals_of_the_protocol(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    headers: dict[str, str],
    content: bytes | None,
    status: int,
    code: str | None,
) -> None:
    sent = {"Content-Type": "application/json", **headers}
    response = await http.request(method, path, content=content, headers=sent)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    if code is not None:
        assert response.json()["error"]["code"] == code
    if status == 405:
        assert response.headers["allow"]


async def test_body_in_chunks_without_a_length(http: httpx.AsyncClient) -> None:
    async def parts() -> Any:
        for part in (b'{"model": "%s", ' % MODEL.encode(), b'"prompt": "Hi"}'):
            yield part

    response = await http.post(
        "/v1/completions", content=parts(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200


async def test_route_without_an_engine(client: openai.AsyncOpenAI, runtime: GatewayRuntime) -> None:
    from apps.engines.models import EngineProcess

    await client.models.list()

    def take_away() -> None:
        EngineProcess.objects.update(state="backing_off")
        change_stamp_bump("replicas")

    await database_hop(take_away)
    await wait_until_async("the change to be seen", lambda: not runtime.table.snapshot.endpoints)
    with pytest.raises(openai.InternalServerError) as missing:
        await client.chat.completions.create(**chat())
    assert missing.value.status_code == 503
    assert body_of(missing.value)["code"] == "engine_unavailable"
    assert missing.value.response.headers["retry-after"] == "1"


async def test_engine_that_is_gone(client: openai.AsyncOpenAI, engine_process: EngineRun) -> None:
    from apps.engines.models import EngineProcess

    gone = str(engine_process.socket_path) + ".gone"
    await database_hop(lambda: EngineProcess.objects.update(socket_path=gone))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as missing:
            await client.chat.completions.create(**chat(stream=stream))
        assert missing.value.status_code == 503
        error = body_of(missing.value)
        assert error["code"] == "engine_unavailable"
        assert gone not in error["message"]
    assert await n_rows() == 0


async def test_inactive_route_disappears(
    client: openai.AsyncOpenAI, runtime: GatewayRuntime
) -> None:
    from apps.audit.types import SYSTEM
    from apps.routing.services import route_update

    await client.models.list()

    def switch_off() -> None:
        route_update(route=Route.objects.get(), actor=SYSTEM, is_active=False)

    await database_hop(switch_off)
    await wait_until_async("the route to be gone", lambda: not runtime.table.snapshot.routes)
    assert (await client.models.list()).data == []


async def test_request_deadline(
    client: openai.AsyncOpenAI, engine_process: EngineRun, settings: Any
) -> None:
    settings.GATEWAY_REQUEST_TIMEOUT_S = 0.2
    body = chat(max_tokens=LONG_ANSWER)
    with pytest.raises(openai.InternalServerError) as late:
        await client.chat.completions.create(**body, extra_body={"ignore_eos": True})
    assert (late.value.status_code, body_of(late.value)["code"]) == (504, "request_timeout")
    row = await database_hop(all_of(UsageRecord).get)
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "request_timeout")
    assert 0 < row.n_completion_tokens < LONG_ANSWER
    wait_until("the engine to be idle", engine_process.is_idle)


async def test_interruption_ends_streams_in_band(
    http: httpx.AsyncClient, runtime: GatewayRuntime, engine_process: EngineRun
) -> None:
    body = chat(max_tokens=LONG_ANSWER, ignore_eos=True, stream=True)
    request = asyncio.ensure_future(http.post("/v1/chat/completions", json=body))
    await wait_until_async("the stream to run", lambda: engine_process.stats().n_running == 1)
    runtime.is_draining = True
    runtime.interrupt_all()
    response = await request
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert '"code":"server_shutting_down"' in events[-3]
    assert '"finish_reason":"' not in response.text
    refused = await http.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    row = await database_hop(all_of(UsageRecord).get)
    assert (row.outcome, row.error_code) == ("failed", "server_shutting_down")
    wait_until("the engine to be idle", engine_process.is_idle)


async def test_unexpected_failure_is_told_without_its_words(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("apps.gateway.admission._prepare", fail)
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(**chat())
    assert body_of(failed.value) == AppError().body()["error"]
