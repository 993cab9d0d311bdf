"""A route to a remote replica, which is another server of this platform: its own process, reached
over HTTP with a token of its own. What clients and the ledger see is as of an engine of ours."""

from collections.abc import Iterator
from typing import Any

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
from tests.processes import ServerRun

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
    found = UsageRecord.objects.filter(route_name=route).order_by("id")
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
