"""An engine that is gone, or full, as requests come to it: those whose clients were told
nothing are answered elsewhere, and the ledger says by whom."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.gateway.runtime import gateway_runtime
from apps.metering.models import Meter
from apps.rbac.models import ApiToken
from apps.routing.models import RouteTarget
from config.asgi import application
from tests import remote
from tests.factories import (
    ApiTokenFactory,
    DeploymentFactory,
    EngineProcessFactory,
    RemoteServerFactory,
    ReplicaFactory,
    RouteFactory,
)
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.failing_over import deployed, engines, kill, rows, said
from tests.models import random_llama_dir
from tests.processes import EngineRun
from tests.remote import KEY, of_body
from tests.rows import all_of
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"
FALLBACK = "x-fallback-deployment"
NAME = "lab/two"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"), max_position_embeddings=16_384)


@pytest.fixture(scope="module")
def survivor(model_dir: Path) -> Iterator[EngineRun]:
    """The engine that no test kills."""
    with engines(model_dir, "second") as runs:
        yield runs["second"]


@pytest.fixture
def two(model_dir: Path, survivor: EngineRun) -> Iterator[dict[str, EngineRun]]:
    with engines(model_dir, "first") as runs:
        yield {**runs, "second": survivor}


@pytest.fixture
def token(transactional_db: None) -> ApiToken:
    return ApiTokenFactory(tokens_per_day=1_000_000)


@pytest.fixture
async def http(token: ApiToken) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {token.secret}"},
        timeout=60,
    ) as client:
        yield client
    await gateway_runtime().aclose()


def route_to(two: dict[str, EngineRun], *, is_fallback: bool) -> None:
    """Everything goes to the first; the second has the rest of the weights, or is for failures."""
    route = RouteFactory(name=NAME, deployment=deployed("first", two["first"]))
    second = deployed("second", two["second"])
    RouteTarget.objects.filter(route=route).update(weight=1000)
    RouteTarget.objects.create(
        route=route,
        deployment=second,
        weight=0 if is_fallback else 1,
        fallback_order=1 if is_fallback else None,
    )
    said()


def body(**fields: Any) -> dict[str, Any]:
    return chat(**{"model": NAME, "ignore_eos": True, **fields})


async def streamed(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, which ends as it should."""
    answer = await http.post(CHAT, json=body(stream=True, **fields))
    assert answer.status_code == 200
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def nothing_is_held() -> bool:
    held = await database_hop(lambda: list(all_of(Meter).values_list("n_held", flat=True)))
    return not any(held)


def _use_weight() -> None:
    RouteTarget.objects.filter(fallback_order=1).update(weight=1, fallback_order=None)
    said()


async def test_a_dead_engine_fails_nobody(
    http: httpx.AsyncClient, two: dict[str, EngineRun]
) -> None:
    await database_hop(route_to, two, is_fallback=True)
    kill(two["first"])  # and nobody has heard of it yet
    ids = set()
    for expected in ("second", None):
        answers = await asyncio.gather(*(http.post(CHAT, json=body()) for _ in range(24)))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers.get(FALLBACK) for answer in answers} == {expected}
        ids |= {answer.headers["x-request-id"] for answer in answers}
        await database_hop(_use_weight)
        await wait_until_async("the change to be seen", _has_no_fallback)
    found = await rows()
    assert {row.request_id for row in found} == ids
    assert len(found) == 48
    assert [(row.engine_name, row.outcome, row.is_fallback) for row in found] == (
        [("second-0", "completed", True)] * 24 + [("second-0", "completed", False)] * 24
    )
    assert {row.attempt for row in found} <= {1, 2}
    assert await nothing_is_held()


def _has_no_fallback() -> bool:
    return not gateway_runtime().table.snapshot.routes[NAME].fallbacks


async def test_an_overloaded_server_is_no_reason_to_wait_and_a_wrong_request_is(
    http: httpx.AsyncClient, survivor: EngineRun, settings: Any
) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    async with remote.upstream() as upstream:
        await database_hop(_far, upstream.base_url, survivor)
        wrong = await http.post(CHAT, json=body(temperature=9, n=99))
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "n")
        assert await rows() == []
        upstream.answer = of_body(b"{}", status=429, headers={"Retry-After": "7"})
        whole = await http.post(CHAT, json=body())
        events = await streamed(http)
        assert (whole.status_code, whole.headers[FALLBACK]) == (200, "second")
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert len(upstream.asked) == 2
    found = [(row.engine_name, row.outcome, row.error_code) for row in await rows()]
    assert found == [
        ("far-0", "failed", "engine_overloaded"),
        ("second-0", "completed", ""),
    ] * 2  # fmt: skip
    assert await nothing_is_held()


def _far(base_url: str, run: EngineRun) -> None:
    server = RemoteServerFactory(base_url=base_url, api_key=KEY)
    far = DeploymentFactory(name="far", elsewhere=True, remote=server, remote_model=remote.MODEL)
    process = EngineProcessFactory(ready=True, name="far-0", socket_path="", pid=None)
    ReplicaFactory(deployment=far, index=0, engine_process=process)
    route = RouteFactory(name=NAME, deployment=far)
    RouteTarget.objects.create(route=route, deployment=deployed("second", run), fallback_order=1)
    said()
