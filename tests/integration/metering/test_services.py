"""The ledger: reserved once, settled once, and closed when nobody settles."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.core.limits import Limits
from apps.metering.models import Meter, UsageRecord
from apps.metering.selectors import scopes_of
from apps.metering.services import orphans_close, reservation_void, reserve, settle
from apps.metering.types import Ending, Grant, Outcome, Reservation, Settlement
from apps.rbac.types import Principal
from tests.rows import all_of

PRINCIPAL = Principal(
    tenant_id=7,
    tenant_slug="t",
    cache_salt="s",
    label="token",
    limits=Limits(tokens_per_day=100),
    api_token_id=3,
)
RESERVATION = Reservation(
    request_id="chatcmpl-1",
    principal=PRINCIPAL,
    door="rest",
    endpoint="chat.completions",
    route_name="m",
    deployment_id=1,
    model_version_id=2,
    engine_name="m-0",
    engine_epoch=4,
    n_prompt_tokens=10,
    n_reserved_tokens=30,
    n_least_tokens=11,
    scopes=scopes_of(PRINCIPAL),
    lifetime_s=60.0,
)
ENDING = Ending(
    outcome=Outcome.COMPLETED,
    finish_reason="stop",
    n_completion_tokens=12,
    n_cached_tokens=8,
    ttft_ms=5.0,
    total_ms=50.0,
)


def settlement(grant: Grant, *, request_id: str = "chatcmpl-1", **fields: Any) -> Settlement:
    return Settlement(
        request_id=request_id, grant=grant, n_prompt_tokens=10, ending=replace(ENDING, **fields)
    )


def meters() -> dict[str, tuple[int, int]]:
    """What is used and held, by the length of the period: a day's or a month's."""
    return {
        "day" if len(row.period) == 10 else "month": (row.n_used, row.n_held)
        for row in all_of(Meter).all()
    }


def statements(queries: CaptureQueriesContext) -> list[str]:
    return [
        query["sql"]
        for query in queries.captured_queries
        if not query["sql"].startswith(("SAVEPOINT", "RELEASE"))
    ]


@pytest.mark.django_db
def test_reserve_is_two_statements_once_its_meters_are_there() -> None:
    reserve(replace(RESERVATION, request_id="first"))
    with CaptureQueriesContext(connection) as queries:
        reserve(RESERVATION)
    assert len(statements(queries)) == 2
    row = all_of(UsageRecord).get(request_id="chatcmpl-1")
    assert (row.state, row.outcome, row.settled_at) == ("reserved", "", None)
    assert (row.tenant_id, row.api_token_id, row.user_id) == (7, 3, None)
    assert (row.n_prompt_tokens, row.n_reserved_tokens, row.n_completion_tokens) == (10, 30, 0)
    assert row.expires_at - row.created_at == timedelta(seconds=60)


@pytest.mark.django_db
def test_an_id_is_reserved_once() -> None:
    reserve(RESERVATION)
    with pytest.raises(IntegrityError), transaction.atomic():
        reserve(RESERVATION)
    assert all_of(UsageRecord).count() == 1


@pytest.mark.django_db
def test_settle_is_two_statements_and_counts_once() -> None:
    grant = reserve(RESERVATION)
    assert meters() == {"day": (0, 30), "month": (0, 30)}
    with CaptureQueriesContext(connection) as queries:
        assert settle(settlement(grant)) is True
    assert len(statements(queries)) == 2
    assert settle(settlement(grant, n_completion_tokens=99)) is False
    assert meters() == {"day": (22, 0), "month": (22, 0)}
    row = all_of(UsageRecord).get()
    assert (row.state, row.outcome, row.finish_reason) == ("settled", "completed", "stop")
    assert (row.n_completion_tokens, row.n_cached_tokens) == (12, 8)
    assert (row.ttft_ms, row.total_ms) == (5.0, 50.0)
    assert row.settled_at is not None


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("outcome", "n_made", "n_charged"),
    [
        (Outcome.ABORTED, 3, 13),
        (Outcome.ABORTED, 0, 10),
        (Outcome.FAILED, 3, 13),
        (Outcome.FAILED, 0, 0),
    ],
)
def test_what_the_platform_failed_at_costs_nothing(
    outcome: Outcome, n_made: int, n_charged: int
) -> None:
    grant = reserve(RESERVATION)
    settle(settlement(grant, outcome=outcome, n_completion_tokens=n_made))
    assert all_of(UsageRecord).get().n_charged_tokens == n_charged
    assert meters()["day"] == (n_charged, 0)


@pytest.mark.django_db
def test_what_was_not_reserved_is_not_settled() -> None:
    assert settle(settlement(Grant(n_tokens=30))) is False
    assert all_of(UsageRecord).count() == 0


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_settles() -> None:
    grant = reserve(RESERVATION)

    def one(n_tokens: int) -> bool:
        try:
            return settle(settlement(grant, n_completion_tokens=n_tokens))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(one, range(1, 13)))
    assert sum(won) == 1
    row = all_of(UsageRecord).get()
    assert row.n_completion_tokens == won.index(True) + 1
    assert meters()["day"] == (row.n_charged_tokens, 0)


@pytest.mark.django_db
def test_orphans_are_closed_as_interrupted() -> None:
    now = timezone.now()
    for index, lifetime_s in enumerate((-1.0, 60.0)):
        reserve(replace(RESERVATION, request_id=f"r{index}", lifetime_s=lifetime_s))
    grant = reserve(replace(RESERVATION, request_id="done", lifetime_s=-1.0))
    settle(settlement(grant, request_id="done"))
    assert orphans_close(now) == 1
    assert orphans_close(now) == 0
    orphan = all_of(UsageRecord).get(request_id="r0")
    assert (orphan.state, orphan.outcome, orphan.error_code) == (
        "settled",
        "interrupted",
        "orphaned",
    )
    assert all_of(UsageRecord).get(request_id="r1").state == "reserved"
    assert all_of(UsageRecord).get(request_id="done").outcome == "completed"
    assert settle(settlement(grant, request_id="r0")) is False
    assert meters()["day"] == (22 + 10, 30)


@pytest.mark.django_db
def test_a_reservation_that_nobody_heard_of_is_closed_free_of_charge() -> None:
    reserve(RESERVATION)
    grant = reserve(replace(RESERVATION, request_id="done"))
    settle(settlement(grant, request_id="done"))
    used, held = meters()["day"]
    assert held == 30
    assert [reservation_void(each) for each in (RESERVATION.request_id, "done", "never")] == [
        True,
        False,
        False,
    ]
    assert reservation_void(RESERVATION.request_id) is False
    row = all_of(UsageRecord).get(request_id=RESERVATION.request_id)
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "not_recorded")
    assert (row.n_charged_tokens, row.cost_micro) == (0, 0)
    assert all_of(UsageRecord).get(request_id="done").outcome == "completed"
    assert meters()["day"] == (used, 0)


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
        all_of(UsageRecord).update(**fields)
    assert all_of(UsageRecord).get().state == "reserved"
