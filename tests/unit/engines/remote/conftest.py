"""A remote server for each test, and a client of it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apps.engines.remote.client import RemoteClient
from tests import remote
from tests.remote import Upstream, target


@pytest.fixture(autouse=True)
def here_is_allowed(settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with remote.upstream() as run:
        yield run


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[RemoteClient]:
    client = RemoteClient(target(upstream.base_url))
    await client.connect()
    yield client
    await client.close()
