"""Requests that were refused leave a count of their reason, and nothing else."""

import time
from typing import Any

import httpx
import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.core.exceptions import AppError, InvalidRequest
from apps.core.hop import database_hop
from apps.gateway import refusals
from apps.gateway.refusals import Refusals
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import RefusalRollup, UsageRecord
from apps.metering.services import refusals_add
from apps.metering.types import RefusalKey
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_token
from tests.factories import MembershipFactory, TenantFactory
from tests.integration.gateway.conftest import chat
from tests.rows import all_of
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.clear()
    monkeypatch.setattr(refusals, "WRITE_EVERY_S", 0.05)


def counts() -> dict[tuple[int, str], int]:
    rows = all_of(RefusalRollup).values_list("tenant_id", "code", "n_requests")
    return {(tenant_id, code): n for tenant_id, code, n in rows}


async def test_each_reason_is_counted_and_what_runs_is_none(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    def limit() -> None:
        all_of(type(token)).filter(pk=token.pk).update(requests_per_minute=3)

    await database_hop(limit)
    bodies: list[Any] = [chat(), chat(model="none"), chat(max_tokens=0), chat()]
    found = [(await http.post(CHAT, json=body)).status_code for body in bodies]
    assert found == [200, 404, 400, 429]
    wrong = await http.post(CHAT, json=chat(), headers={"Authorization": "Bearer sk-nano-x"})
    assert wrong.status_code == 401  # nobody's

    async def is_written() -> bool:
        return sum((await database_hop(counts)).values()) == 3

    await wait_until_async("the refusals to be written", is_written)
    assert await database_hop(counts) == {
        (token.tenant_id, "model_not_found"): 1,
        (token.tenant_id, "rate_limit_exceeded"): 1,
        (token.tenant_id, "invalid_value"): 1,
    }
    assert await database_hop(all_of(UsageRecord).count) == 1


async def test_what_was_counted_is_written_at_the_end(
    token: ApiToken, runtime: GatewayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "WRITE_EVERY_S", 60)
    principal = await database_hop(principal_of_token, token.pk)
    for _ in range(5):
        runtime.refusals.note(principal, InvalidRequest("x", code="y"))
    runtime.refusals.note(principal, AppError())  # a fault of ours
    began_s = time.monotonic()
    await runtime.aclose()
    assert time.monotonic() - began_s < 5
    assert await database_hop(counts) == {(token.tenant_id, "y"): 5}


async def test_a_flood_of_kinds_is_bounded(
    token: ApiToken, runtime: GatewayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_KEYS", 3)
    noted = Refusals(spawn=runtime.spawn)
    principal = await database_hop(principal_of_token, token.pk)
    for number in range(9):
        noted.note(principal, InvalidRequest("x", code=f"code-{number % 5}"))
    noted.close()
    await runtime.aclose()
    assert sorted((await database_hop(counts)).values()) == [2, 2, 2]


@pytest.mark.django_db
def test_the_page_of_usage_shows_those_that_somebody_may_see(admin_client: Client) -> None:
    mine = MembershipFactory(role="viewer", user__is_staff=True)
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for tenant_id, code in ((mine.tenant_id, "mine_alone"), (TenantFactory().pk, "of_others")):
        key = RefusalKey(period_start=hour, tenant_id=tenant_id, code=code)
        refusals_add({key: 2})
        refusals_add({key: 3})
    client = Client()
    client.force_login(mine.user)
    url = reverse("admin:metering_usage")
    assert admin_client.get(url).context["refusals"] == [("mine_alone", 5), ("of_others", 5)]
    assert admin_client.get(url, {"token": "1"}).context["refusals"] == []
    page = client.get(url)
    assert page.context["refusals"] == [("mine_alone", 5)]
    assert "of_others" not in page.content.decode()
