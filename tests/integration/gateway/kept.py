"""Answers that are told again, for tests."""

from typing import Any

import httpx
import pytest
from django.core.cache import cache

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from apps.routing.models import Route
from apps.routing.services import (
    route_update,
)
from tests.integration.gateway.conftest import chat
from tests.rows import all_of

CHAT = "/v1/chat/completions"
HEADER = "x-response-cache"
USE, NO_STORE = {"X-Response-Cache": "use"}, {"X-Response-Cache": "no-store"}
REDIS_URL = "redis://127.0.0.1:6379/13"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()  # of the minutes' counts


@pytest.fixture
def caching(route: str) -> None:
    """Its route keeps answers; made before anything has read the routes."""
    found = Route.objects.get(name=route)
    route_update(route=found, actor=SYSTEM, caches_responses=True)


@pytest.fixture
def http(caching: None, http: httpx.AsyncClient) -> httpx.AsyncClient:
    return http


async def ledger() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))


async def told(http: httpx.AsyncClient, body: Any = None, **headers: str) -> str | None:
    """Ask, and return what the header says."""
    response = await http.post(CHAT, json=body or chat(), headers=headers)
    assert response.status_code == 200, response.text
    return response.headers.get(HEADER)
