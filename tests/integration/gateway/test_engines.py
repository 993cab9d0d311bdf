"""The pool of connections to engines, against a real engine and one that does not answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from apps.deployments.types import ReplicaEndpoint
from apps.engines.exceptions import EngineDead, EngineUnresponsive
from apps.gateway import engines
from apps.gateway.engines import EnginePool
from tests.processes import EngineRun


@pytest.fixture
def endpoint(engine_process: EngineRun) -> ReplicaEndpoint:
    return ReplicaEndpoint(
        deployment_id=1,
        deployment_name="d",
        model_version_id=1,
        replica_index=0,
        engine_name="d-0",
        epoch=engine_process.epoch,
        socket_path=str(engine_process.socket_path),
    )


@pytest.fixture
async def pool() -> AsyncIterator[EnginePool]:
    pool = EnginePool(name="test")
    yield pool
    await pool.aclose()


async def test_all_share_one_connection(pool: EnginePool, endpoint: ReplicaEndpoint) -> None:
    clients = await asyncio.gather(*(pool.client(endpoint) for _ in range(8)))
    assert len({id(client) for client in clients}) == 1
    assert await pool.client(endpoint) is clients[0]


async def test_a_lost_connection_is_made_anew(pool: EnginePool, endpoint: ReplicaEndpoint) -> None:
    first = await pool.client(endpoint)
    await first.close()
    second = await pool.client(endpoint)
    assert second is not first
    assert (await second.ping(5)).epoch == endpoint.epoch


async def test_another_start_is_not_taken_for_the_one_expected(
    pool: EnginePool, endpoint: ReplicaEndpoint
) -> None:
    with pytest.raises(EngineDead):
        await pool.client(replace(endpoint, epoch=endpoint.epoch + 1))


async def test_retain_closes_old_starts_only(pool: EnginePool, endpoint: ReplicaEndpoint) -> None:
    client = await pool.client(endpoint)
    pool.retain([endpoint])
    pool.retain([])  # not ready any more, but its requests may still run
    assert await pool.client(endpoint) is client
    pool.retain([replace(endpoint, epoch=endpoint.epoch + 1)])
    await pool.aclose()
    assert client.is_closed


async def test_a_crowd_waits_once_for_an_engine_that_does_not_answer(
    pool: EnginePool, endpoint: ReplicaEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_S", 0.3)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = str(tmp_path / "mute.sock")
    server = await asyncio.start_unix_server(say_nothing, path)
    mute = replace(endpoint, socket_path=path)
    started_at = time.monotonic()
    answers = await asyncio.gather(*(pool.client(mute) for _ in range(10)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {EngineUnresponsive}
    assert 0.3 <= time.monotonic() - started_at < 1.5
    server.close()
