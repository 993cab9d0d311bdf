"""A route to a remote replica, which is another server of this platform: its own process, reached
over HTTP with a token of its own. What clients and the ledger see is as of an engine of ours."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from tests.factories.access import ApiTokenFactory
from tests.factories.deployments import (
    DeploymentFactory,
    EngineProcessFactory,
    RemoteServerFactory,
    ReplicaFactory,
)
from tests.factories.routing import RouteFactory
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.streams import ends, opened, send, until
from tests.integration.gateway.test_revocation import Streamed, revoke
from tests.processes import EngineRun, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async

REMOTE = "far/tiny"


@pytest.fixture
def upstream_token(transactional_db: None) -> ApiToken:
    return ApiTokenFactory()


@pytest.fixture
def remote(server: ServerRun, upstream_token: ApiToken, settings: Any) -> Iterator[str]:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    remote = RemoteServerFactory(base_url=f"{server.base_url}/v1", api_key=upstream_token.secret)
    deployment = DeploymentFactory(
        name="far", elsewhere=True, remote=remote, remote_model=MODEL, max_model_len=2048
    )
    ReplicaFactory(
        deployment=deployment,
        index=0,
        engine_process=EngineProcessFactory(ready=True, name="far-0", socket_path="", pid=None),
    )
    RouteFactory(name=REMOTE, deployment=deployment)
    change_stamp_bump("routes")
    return REMOTE


async def rows_of(route: str) -> list[UsageRecord]:
    found = all_of(UsageRecord).filter(route_name=route).order_by("id")
    return await database_hop(lambda: list(found))


async def test_whole_answer(remote: str, client: openai.AsyncOpenAI) -> None:
    near = await client.chat.completions.create(**chat())
    far = await client.chat.completions.create(**chat() | {"model": remote})
    assert far.model == remote
    assert far.choices[0].message.content == near.choices[0].message.content
    assert far.choices[0].finish_reason == "length"
    assert far.usage == near.usage
    assert far.id != near.id
    [row] = await rows_of(remote)
    assert (row.state, row.outcome, row.finish_reason) == ("settled", "completed", "length")
    assert far.usage is not None
    assert row.n_prompt_tokens == far.usage.prompt_tokens
    assert row.n_completion_tokens == 8
    assert row.n_charged_tokens == row.n_prompt_tokens + 8 <= row.n_reserved_tokens
    assert (row.engine_name, row.model_version_id) == ("far-0", 0)


async def test_streamed_answer(remote: str, client: openai.AsyncOpenAI) -> None:
    near = await client.chat.completions.create(**chat())
    stream = await client.chat.completions.create(
        **chat(stream=True, stream_options={"include_usage": True}) | {"model": remote}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == near.choices[0].message.content
    assert chunks[-1].usage == near.usage
    [row] = await rows_of(remote)
    assert (row.outcome, row.n_completion_tokens) == ("completed", 8)
    assert row.ttft_ms is not None


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_text_and_token_ids_are_continued(
    remote: str, client: openai.AsyncOpenAI, is_streamed: bool
) -> None:
    for prompt, n_tokens in (("Hi", 2), ([10, 20, 30], 3)):
        ask: dict[str, Any] = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 2}
        near = await client.completions.create(model=MODEL, **ask)
        assert near.usage is not None and near.usage.prompt_tokens == n_tokens
        if not is_streamed:
            far = await client.completions.create(model=remote, **ask)
            assert far.choices[0].text == near.choices[0].text
            assert far.usage == near.usage
            assert far.choices[0].logprobs == near.choices[0].logprobs
            continue
        chunks = [
            chunk
            async for chunk in await client.completions.create(model=remote, stream=True, **ask)
        ]
        assert "".join(chunk.choices[0].text for chunk in chunks) == near.choices[0].text


async def test_tools_and_schemas_are_held_to_there(remote: str, client: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    function = {"name": "look", "parameters": schema, "strict": True}
    ask: dict[str, Any] = {
        **chat(max_tokens=200),
        "model": remote,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    near = await client.chat.completions.create(**ask | {"model": MODEL})
    far = await client.chat.completions.create(**ask)
    for answer in (near, far):
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "look"
        assert answer.choices[0].finish_reason == near.choices[0].finish_reason
        assert set(json.loads(call.function.arguments)) == {"a"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = await client.chat.completions.create(
        **chat(max_tokens=64, response_format=wanted) | {"model": remote}
    )
    assert set(json.loads(told.choices[0].message.content or "")) == {"a"}


async def test_several_answers_with_logprobs(remote: str, client: openai.AsyncOpenAI) -> None:
    ask = chat(n=3, seed=5, temperature=1, logprobs=True, top_logprobs=2)
    near = await client.chat.completions.create(**ask)
    far = await client.chat.completions.create(**ask | {"model": remote})
    assert far.choices == near.choices
    assert far.usage == near.usage
    [row] = await rows_of(remote)
    assert row.n_completion_tokens == 24


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 8, "temperature": 0}),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
        ),
    ],
)
async def test_other_doors(
    remote: str, http: httpx.AsyncClient, path: str, body: dict[str, Any], is_streamed: bool
) -> None:
    response = await http.post(path, json={"model": remote, **body, "stream": is_streamed})
    assert response.status_code == 200, response.text
    [row] = await rows_of(remote)
    assert (row.outcome, row.n_prompt_tokens, row.n_completion_tokens) == ("completed", 24, 8)
    if not is_streamed:
        usage = response.json()["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (24, 8)


async def test_a_refusal_there_is_a_refusal_here(remote: str, client: openai.AsyncOpenAI) -> None:
    for changed, param in (
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 2048}, "max_tokens"),
        ({"n": 0}, "n"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**chat() | changed | {"model": remote})
        assert refused.value.param == param, refused.value
    rows = await rows_of(remote)
    assert [(row.outcome, row.n_charged_tokens) for row in rows] == [("failed", 0)]


async def test_what_only_an_engine_here_can_do_is_said(
    remote: str, http: httpx.AsyncClient
) -> None:
    for path, body in (
        ("/tokenize", {"model": remote, "prompt": "x"}),
        ("/detokenize", {"model": remote, "tokens": [1]}),
        ("/v1/embeddings", {"model": remote, "input": "x"}),
        (
            "/v1/completions",
            {"model": remote, "prompt": "x", "echo": True, "logprobs": 1},
        ),
    ):
        response = await http.post(path, json=body)
        assert response.status_code == 400, (path, response.text)
        assert response.json()["error"]["param"] in ("model", "echo")
    assert await rows_of(remote) == []


@pytest.mark.server_env(REMOTE_ALLOWED_NETWORKS="127.0.0.0/8")
async def test_a_websocket_gets_it_in_pieces(
    remote: str, server: ServerRun, token: ApiToken
) -> None:
    """The server asks itself, as another one would be asked."""
    async with opened(server, token) as ws:
        await send(ws, type="start", id="c1", **chat(max_tokens=200) | {"model": remote})
        started, *deltas, finished = await until(ws, ends("c1"))
    assert started["type"] == "started", started
    assert len(deltas) > 1
    assert finished["usage"]["completion_tokens"] == 200
    [row] = await rows_of(remote)
    assert (row.door, row.outcome, row.n_prompt_tokens) == ("websocket", "completed", 24)


@pytest.mark.server_env(REMOTE_ALLOWED_NETWORKS="127.0.0.0/8")
async def test_a_token_that_is_revoked_ends_it_on_both_sides(
    remote: str, server: ServerRun, token: ApiToken, engine_process: EngineRun
) -> None:
    streamed = Streamed(server, token, model=remote, max_tokens=1900, ignore_eos=True)
    await asyncio.wait_for(streamed.begun.wait(), 20)
    await revoke(token)
    await asyncio.wait_for(streamed.task, 10)
    assert "access_revoked" in streamed.events[-2]
    await wait_until_async("the engine to be idle", lambda: _of(engine_process.is_idle()))
    [row] = await rows_of(remote)
    assert (row.state, row.error_code) == ("settled", "access_revoked")
    assert 0 < row.n_completion_tokens < 1900
    assert row.n_charged_tokens == row.n_prompt_tokens + row.n_completion_tokens


async def _of(value: bool) -> bool:
    return value
