"""Two versions of the real model behind one name: traffic as it was set, each row attributed to the
version that the answer says it is from."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.gateway.runtime import gateway_runtime
from apps.rbac.models import ApiToken
from apps.routing.models import RouteTarget
from apps.routing.selectors import RoutingTable
from config.asgi import application
from tests.factories import ApiTokenFactory, ModelVersionFactory, RouteFactory
from tests.integration.gateway.failing_over import deployed, rows, said
from tests.models import smollm2_dir
from tests.processes import EngineRun, running_engine

NAME = "smollm2"
N_REQUESTS = 300
AT_A_TIME = 8
WEIGHTS = {"bfloat16": 70, "float32": 30}
Z_99 = 2.576  # standard deviations, for 99 % on both sides


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineRun]]:
    directory = tmp_path_factory.mktemp("versions")
    runs: dict[str, EngineRun] = {}
    first = running_engine(smollm2_dir(), _made(directory / "a"), "--dtype", "bfloat16")
    second = running_engine(smollm2_dir(), _made(directory / "b"), "--dtype", "float32")
    with first as runs["bfloat16"], second as runs["float32"]:
        yield runs


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture
def token(transactional_db: None) -> ApiToken:
    return ApiTokenFactory()


@pytest.fixture
async def http(token: ApiToken) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {token.secret}"},
        timeout=120,
    ) as client:
        yield client
    await gateway_runtime().aclose()


def _route(versions: dict[str, EngineRun]) -> dict[str, int]:
    """Make the route; return the id of each dtype's model version."""
    route = RouteFactory(name=NAME, deployment=None)
    found = {}
    for dtype, weight in WEIGHTS.items():
        version = ModelVersionFactory(dtype=dtype)
        deployment = deployed(f"smollm2-{dtype}", versions[dtype], model_version=version)
        RouteTarget.objects.create(route=route, deployment=deployment, weight=weight)
        found[dtype] = version.pk
    said()
    return found


async def test_traffic_as_set_and_each_row_attributed(
    http: httpx.AsyncClient, versions: dict[str, EngineRun]
) -> None:
    version_ids = await database_hop(_route, versions)
    runtime = gateway_runtime()
    # The interval leaves out one run of a hundred.
    runtime.table = RoutingTable(random=Random(11))
    gate = asyncio.Semaphore(AT_A_TIME)

    async def ask(number: int) -> Any:
        body = {"model": NAME, "prompt": f"{number} and", "max_tokens": 1}
        async with gate:
            answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    answers = await asyncio.gather(*(ask(number) for number in range(N_REQUESTS)))
    by_id = {row.request_id: row for row in await rows()}
    assert len(by_id) == N_REQUESTS
    counted: Counter[str] = Counter()
    for answer in answers:
        row = by_id.pop(answer["id"])
        _, version_id, _, dtype, *_ = answer["system_fingerprint"].split("_")
        assert (row.model_version_id, row.engine_name) == (
            version_ids[dtype], f"smollm2-{dtype}-0",
        )  # fmt: skip
        assert row.model_version_id == int(version_id)
        assert (row.outcome, row.attempt, row.is_fallback) == ("completed", 1, False)
        counted[dtype] += 1
    share = WEIGHTS["bfloat16"] / sum(WEIGHTS.values())
    off = abs(counted["bfloat16"] - share * N_REQUESTS)
    print(f"{counted} of {N_REQUESTS}, {off:.0f} off")
    assert off <= Z_99 * sqrt(N_REQUESTS * share * (1 - share))
