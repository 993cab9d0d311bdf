"""The ledger: reserved once, settled once, and closed when nobody settles."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from apps.metering.models import UsageRecord
from apps.metering.services import orphans_close, reserve, settle
from apps.metering.types import Outcome, Reservation, Settlement
from apps.rbac.types import Principal

RESERVATION = Reservation(
    request_id="chatcmpl-1",
    principal=Principal(
        tenant_id=7, tenant_slug="t", cache_salt="s", label="token", api_token_id=3
    ),
    door="rest",
    endpoint="chat.completions",
    route_name="m",
    deployment_id=1,
    model_version_id=2,
    engine_name="m-0",
    engine_epoch=4,
    n_prompt_tokens=10,
    n_reserved_tokens=30,
    lifetime_s=60.0,
)
SETTLEMENT = Settlement(
    request_id="chatcmpl-1",
    outcome=Outcome.COMPLETED,
    finish_reason="stop",
    n_completion_tokens=12,
    n_cached_tokens=8,
    ttft_ms=5.0,
    total_ms=50.0,
)


@pytest.mark.django_db
def test_reserve_is_one_statement(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(1):
        reserve(RESERVATION)
    row = UsageRecord.objects.get()
    assert (row.state, row.outcome, row.settled_at) == ("reserved", "", None)
    assert (row.tenant_id, row.api_token_id, row.user_id) == (7, 3, None)
    assert (row.n_prompt_tokens, row.n_reserved_tokens, row.n_completion_tokens) == (10, 30, 0)
    assert row.expires_at - row.created_at == timedelta(seconds=60)


@pytest.mark.django_db
def test_an_id_is_reserved_once() -> None:
    reserve(RESERVATION)
    with pytest.raises(IntegrityError), transaction.atomic():
        reserve(RESERVATION)
    assert UsageRecord.objects.count() == 1


@pytest.mark.django_db
def test_settle_is_one_statement_and_counts_once(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    reserve(RESERVATION)
    with django_assert_num_queries(1):
        assert settle(SETTLEMENT) is True
    assert settle(replace(SETTLEMENT, n_completion_tokens=99)) is False
    row = UsageRecord.objects.get()
    assert (row.state, row.outcome, row.finish_reason) == ("settled", "completed", "stop")
    assert (row.n_completion_tokens, row.n_cached_tokens) == (12, 8)
    assert (row.ttft_ms, row.total_ms) == (5.0, 50.0)
    assert row.settled_at is not None


@pytest.mark.django_db
def test_what_was_not_reserved_is_not_settled() -> None:
    assert settle(SETTLEMENT) is False
    assert UsageRecord.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_settles() -> None:
    reserve(RESERVATION)

    def one(n_tokens: int) -> bool:
        try:
            return settle(replace(SETTLEMENT, n_completion_tokens=n_tokens))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(one, range(1, 13)))
    assert sum(won) == 1
    assert UsageRecord.objects.get().n_completion_tokens == won.index(True) + 1


@pytest.mark.django_db
def test_orphans_are_closed_as_interrupted() -> None:
    now = timezone.now()
    for index, lifetime_s in enumerate((-1.0, 60.0)):
        reserve(replace(RESERVATION, request_id=f"r{index}", lifetime_s=lifetime_s))
    reserve(replace(RESERVATION, request_id="done", lifetime_s=-1.0))
    settle(replace(SETTLEMENT, request_id="done"))
    assert orphans_close(now) == 1
    assert orphans_close(now) == 0
    orphan = UsageRecord.objects.get(request_id="r0")
    assert (orphan.state, orphan.outcome, orphan.settled_at) == ("settled", "interrupted", now)
    assert UsageRecord.objects.get(request_id="r1").state == "reserved"
    assert UsageRecord.objects.get(request_id="done").outcome == "completed"
    assert settle(replace(SETTLEMENT, request_id="r0")) is False


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields",
    [
        {"state": "settled"},
        {"state": "settled", "settled_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"settled_at": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_the_database_refuses_a_half_settled_row(fields: dict[str, Any]) -> None:
    reserve(RESERVATION)
    with pytest.raises(IntegrityError), transaction.atomic():
        UsageRecord.objects.update(**fields)
    assert UsageRecord.objects.get().state == "reserved"
