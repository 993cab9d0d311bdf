"""A platform with one route to a real engine, reached in this process or through its server."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from apps.core.models import ChangeStamp
from apps.gateway.runtime import GatewayRuntime, gateway_runtime
from apps.rbac.models import ApiToken
from config.asgi import application
from tests.factories.access import ApiTokenFactory
from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.factories.routing import RouteFactory
from tests.integration.gateway.embedding import MODEL as EMBEDDING_MODEL
from tests.integration.gateway.embedding import route_to
from tests.models import minilm_dir
from tests.processes import EngineRun, ServerRun, engine_process, running_engine, running_server
from tests.waiting import wait_until

__all__ = ["engine_process"]

MODEL = "lab/tiny"
ENGINE = "engine-tiny"


@pytest.fixture
def token(transactional_db: None) -> ApiToken:
    return ApiTokenFactory()


@pytest.fixture
def route(transactional_db: None, engine_process: EngineRun) -> str:
    """The public name that leads to the session's engine."""
    deployment = DeploymentFactory(name="tiny")
    ReplicaFactory(
        deployment=deployment,
        index=0,
        engine_process=EngineProcessFactory(
            ready=True,
            name=ENGINE,
            epoch=engine_process.epoch,
            socket_path=str(engine_process.socket_path),
        ),
    )
    RouteFactory(name=MODEL, deployment=deployment)
    for stamp in ("routes", "replicas", "access"):
        # Never a value of an earlier test, which the shared server may have seen.
        ChangeStamp.objects.create(name=stamp, value=time.time_ns())
    return MODEL


@pytest.fixture
async def runtime(route: str) -> AsyncIterator[GatewayRuntime]:
    """The gateway's state in this process, ended with the test."""
    runtime = gateway_runtime()
    yield runtime
    await runtime.aclose()


@pytest.fixture
async def http(runtime: GatewayRuntime, token: ApiToken) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the ASGI application in this process, with a live token."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {token.secret}"},
        timeout=60,
    ) as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient, token: ApiToken) -> openai.AsyncOpenAI:
    """The official client over the ASGI application in this process."""
    return openai.AsyncOpenAI(
        api_key=token.secret,
        base_url="http://testserver/v1",
        http_client=http,
        max_retries=0,
    )


@pytest.fixture(scope="session")
def shared_server(
    django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerRun]:
    with running_server(tmp_path_factory.mktemp("server")) as run:
        yield run


@pytest.fixture
def server(
    route: str, token: ApiToken, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ServerRun]:
    """The real server, shared; one of its own for a test that says ``server_env(NAME="value")``
    to set its environment, or that ends it."""
    marker = request.node.get_closest_marker("server_env")
    if marker is not None:
        with running_server(tmp_path, marker.kwargs) as run:
            yield run
    else:
        run = request.getfixturevalue("shared_server")
        ready = f"{run.base_url}/readyz"
        wait_until("the server to see the rows", lambda: httpx.get(ready).status_code == 200)
        yield run


@pytest.fixture(scope="session")
def embedding_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    with running_engine(minilm_dir(), tmp_path_factory.mktemp("embedding-engine")) as engine:
        yield engine


@pytest.fixture
def embedding_route(route: str, embedding_engine: EngineRun) -> str:
    """Beside the route of the engine that generates."""
    route_to(embedding_engine)
    ChangeStamp.objects.filter(name="routes").update(value=time.time_ns())
    return EMBEDDING_MODEL


@pytest.fixture
async def embeddings(
    embedding_route: str, client: openai.AsyncOpenAI
) -> AsyncIterator[openai.AsyncOpenAI]:
    yield client


def chat(content: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A body for chat completions."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 8,
        **fields,
    }
