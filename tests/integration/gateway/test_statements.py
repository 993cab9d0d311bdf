"""What a request asks of the database: the ledger's two writes, with their budgets, and no more."""

import asyncio
from typing import Any

import httpx
import pytest
from django.db.backends.utils import CursorWrapper

from apps.core.hop import database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.rbac.models import ApiToken
from apps.tenants.models import Plan
from tests.integration.gateway.conftest import chat


@pytest.fixture
async def limited(token: ApiToken) -> None:
    """Every kind of limit, and none of them reached."""
    limits = {
        "requests_per_minute": 1_000,
        "tokens_per_day": 10**6,
        "tokens_per_month": 10**7,
        "max_concurrent_requests": 100,
        "max_context_tokens": 1_000,
    }
    await database_hop(lambda: Plan.objects.filter(tenants=token.tenant_id).update(**limits))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is executed from now on, without the frames of transactions and the polls of changes."""
    seen: list[str] = []
    real = CursorWrapper.execute

    def execute(self: CursorWrapper, sql: Any, params: Any = None) -> Any:
        text = " ".join(str(sql).split())
        if not text.startswith(("BEGIN", "SET")) and "changestamp" not in text:
            seen.append(text)
        return real(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", execute)
    return seen


async def test_a_request_costs_four_statements(
    limited: None, http: httpx.AsyncClient, runtime: GatewayRuntime, statements: list[str]
) -> None:
    async def ask() -> None:
        answer = await http.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"

    await runtime.stamps()  # the first look forgets what was remembered before it
    await ask()  # who asks and what there is to ask is remembered now, and the day has its meters
    statements.clear()
    await ask()
    assert len(statements) == 4, statements
    statements.clear()
    await asyncio.gather(*(ask() for _ in range(16)))
    assert 4 <= len(statements) <= 4 * 16
