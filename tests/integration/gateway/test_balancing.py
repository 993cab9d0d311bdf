"""Two replicas behind one route: where requests go, and that no place is kept."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.deployments.models import Deployment
from apps.deployments.types import ReplicaEndpoint
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import UsageRecord
from tests.factories.deployments import EngineProcessFactory, ReplicaFactory
from tests.integration.gateway.conftest import ENGINE, MODEL, chat
from tests.models import random_llama_dir
from tests.processes import CONTEXT_LENGTH, EngineRun, running_engine
from tests.rows import all_of
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"
SECOND = "engine-tiny-2"
PROMPTS = ["What is a lighthouse for? " * 40, "Name all rivers that you know. " * 40]


@pytest.fixture(scope="module")
def second_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    with another_engine(tmp_path_factory.mktemp("second")) as engine:
        yield engine


def another_engine(directory: Path) -> AbstractContextManager[EngineRun]:
    model_dir = random_llama_dir(directory, max_position_embeddings=CONTEXT_LENGTH)
    return running_engine(model_dir, directory, "--dtype", "float32")


async def replica_add(runtime: GatewayRuntime, engine: EngineRun) -> None:
    """Have the route lead to one more engine, and the gateway know it."""

    def add() -> None:
        process = EngineProcessFactory(
            ready=True, name=SECOND, epoch=engine.epoch, socket_path=str(engine.socket_path)
        )
        deployment = Deployment.objects.get(name="tiny")
        Deployment.objects.filter(pk=deployment.pk).update(n_replicas=2, max_replicas=2)
        ReplicaFactory(deployment=deployment, index=1, engine_process=process)
        change_stamp_bump("replicas")

    await database_hop(add)
    await runtime.ready()
    await wait_until_async("both replicas to be known", lambda: len(endpoints(runtime)) == 2)


@pytest.fixture
async def two(runtime: GatewayRuntime, second_engine: EngineRun) -> GatewayRuntime:
    await replica_add(runtime, second_engine)
    return runtime


def endpoints(runtime: GatewayRuntime) -> list[ReplicaEndpoint]:
    return [each for group in runtime.table.snapshot.endpoints.values() for each in group]


def outstanding(runtime: GatewayRuntime) -> list[int]:
    return [runtime.table.balancer.n_outstanding(each) for each in endpoints(runtime)]


def states(runtime: GatewayRuntime) -> list[str]:
    return [runtime.table.balancer.breaker_state(each) for each in endpoints(runtime)]


async def rows() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))


async def test_a_conversation_stays_where_it_was_read(
    http: httpx.AsyncClient, two: GatewayRuntime
) -> None:
    for _ in range(3):
        for prompt in PROMPTS:
            answer = await http.post(CHAT, json=chat(prompt))
            assert answer.status_code == 200
    found = await rows()
    homes = [row.engine_name for row in found[:2]]
    assert sorted(homes) == [ENGINE, SECOND]
    assert [row.engine_name for row in found] == homes * 3
    assert [row.n_cached_tokens > 900 for row in found[2:]] == [True] * 4
    assert outstanding(two) == [0, 0]


async def test_requests_side_by_side_are_spread(
    http: httpx.AsyncClient, two: GatewayRuntime
) -> None:
    body = chat(PROMPTS[0], max_tokens=64, ignore_eos=True)
    await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(12)))
    names = [row.engine_name for row in await rows()]
    assert min(names.count(ENGINE), names.count(SECOND)) >= 4  # the first end before the last come
    assert outstanding(two) == [0, 0]


async def test_every_kind_of_end_gives_its_place_back(
    http: httpx.AsyncClient, two: GatewayRuntime
) -> None:
    assert (await http.post(CHAT, json=chat(temperature=9))).status_code == 400
    assert (await http.post(CHAT, json=chat("x" * 99_999))).status_code == 400
    assert (await http.post("/tokenize", json={"model": MODEL, "prompt": "a"})).status_code == 200
    embedding = {"model": MODEL, "input": "a"}
    assert (await http.post("/v1/embeddings", json=embedding)).status_code == 400
    leaving = asyncio.create_task(
        http.post(CHAT, json=chat(max_tokens=CONTEXT_LENGTH // 2, ignore_eos=True))
    )
    await wait_until_async("it to run", lambda: sum(outstanding(two)) > 0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await wait_until_async("its place to be free", lambda: outstanding(two) == [0, 0])


async def test_a_replica_that_is_killed_is_left_alone_at_once(
    http: httpx.AsyncClient, runtime: GatewayRuntime, tmp_path: Path
) -> None:
    """The rows still say that it is ready: nobody but the balancer keeps requests away from it."""
    with another_engine(tmp_path) as engine:
        await replica_add(runtime, engine)
        body = chat(max_tokens=CONTEXT_LENGTH // 2, ignore_eos=True, stream=True)
        streams = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(4)]
        await wait_until_async("both to be at work", lambda: min(outstanding(runtime)) > 0)
        engine.process.kill()
        engine.process.wait()
        await wait_until_async("the breaker to open", lambda: "open" in states(runtime))
        for _ in range(5):
            assert (await http.post(CHAT, json=chat())).status_code == 200
    assert {row.engine_name for row in (await rows())[4:]} == {ENGINE}
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
