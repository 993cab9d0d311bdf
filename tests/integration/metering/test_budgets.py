"""Budgets: held by all meters of a request or by none, never overrun, and refused truly."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection

from apps.core.limits import Limits
from apps.metering import budgets
from apps.metering.exceptions import BudgetHeld, LimitExceeded, QuotaExceeded, TooManyConcurrent
from apps.metering.meters import give_back
from apps.metering.models import Meter
from apps.metering.types import Grant, Reservation, Scope
from apps.rbac.types import Principal
from tests.rows import all_of

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 26, 23, 59, 0, tzinfo=UTC)


def scope(key: str = "tenant:1", **limits: Any) -> Scope:
    return Scope(key=key, said="Your organization", limits=Limits(**limits))


def reserve(*scopes: Scope, least: int = 11, most: int = 30, is_open: bool = True) -> Grant:
    reservation = Reservation(
        request_id="r",
        principal=Principal(
            tenant_id=1, tenant_slug="t", cache_salt="s", label="l", limits=Limits()
        ),
        door="rest",
        endpoint="chat.completions",
        route_name="m",
        deployment_id=1,
        model_version_id=1,
        engine_name="m-0",
        engine_epoch=1,
        n_prompt_tokens=least - 1,
        n_reserved_tokens=most,
        n_least_tokens=least,
        scopes=scopes,
        is_open=is_open,
        lifetime_s=60.0,
    )
    return budgets.reserve(reservation, now=NOW)


def held(period: str = "2026-11-26", key: str = "tenant:1") -> tuple[int, int]:
    row = all_of(Meter).get(scope=key, period=period)
    return row.n_used, row.n_held


def test_without_scopes_all_is_granted_and_nothing_counted() -> None:
    assert reserve() == Grant(n_tokens=30)
    assert not all_of(Meter).exists()


def test_what_has_no_limit_is_counted() -> None:
    grant = reserve(scope())
    assert (grant.n_tokens, grant.budget, len(grant.meter_ids)) == (30, None, 2)
    assert held() == held("2026-11") == (0, 30)


def test_the_last_of_a_budget_is_granted_and_then_nothing() -> None:
    mine = scope(tokens_per_day=50)
    assert reserve(mine).n_tokens == 30
    grant = reserve(mine)
    assert grant.n_tokens == 20
    assert grant.budget is not None
    assert (grant.budget.limit, grant.budget.n_left, grant.budget.resets_in_s) == (50, 0, 60.0)
    with pytest.raises(BudgetHeld) as refusal:
        reserve(mine)
    assert (refusal.value.retry_after_s, refusal.value.type) == (1.0, "tokens")
    assert held() == (0, 50)


def test_the_emptiest_meter_decides_and_the_others_hold_no_more() -> None:
    grant = reserve(
        scope(tokens_per_day=100, tokens_per_month=80), scope("key:3", tokens_per_day=17)
    )
    assert grant.n_tokens == 17
    assert grant.budget is not None and grant.budget.limit == 17
    assert held() == held("2026-11") == held(key="key:3") == (0, 17)


def test_a_refusal_moves_no_meter() -> None:
    with pytest.raises(QuotaExceeded):
        reserve(scope(tokens_per_day=100), scope("key:3", tokens_per_day=10))
    assert held() == held(key="key:3") == (0, 0)


@pytest.mark.parametrize(
    ("limits", "seconds", "said"),
    [
        ({"tokens_per_day": 10}, 60.0, "10 of 10 tokens left today, and this request needs 11"),
        ({"tokens_per_month": 0}, 4 * 86_400 + 60.0, "0 of 0 tokens left this month"),
        # Of two, that which lasts longest: sooner there is no use in trying.
        ({"tokens_per_day": 0, "tokens_per_month": 0}, 4 * 86_400 + 60.0, "this month"),
    ],
)
def test_a_quota_says_when_it_is_there_again(
    limits: dict[str, int], seconds: float, said: str
) -> None:
    with pytest.raises(QuotaExceeded, match=said) as refusal:
        reserve(scope(**limits))
    error = refusal.value
    assert (error.retry_after_s, error.should_retry) == (seconds, False)
    assert (error.status, error.code, error.type) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )


def test_settling_frees_what_was_not_used() -> None:
    mine = scope(tokens_per_day=41, max_concurrent_requests=1)
    grant = reserve(mine)
    with pytest.raises(TooManyConcurrent, match="1 requests running, of 1"):
        reserve(mine)
    give_back(meter_ids=grant.meter_ids, n_held=grant.n_tokens, n_used=12)
    assert held() == (12, 0)
    assert held("open") == (0, 0)
    assert reserve(mine).n_tokens == 29


def test_what_is_in_no_hurry_takes_no_place_among_the_open() -> None:
    mine = scope(max_concurrent_requests=1)
    reserve(mine)
    reserve(mine, is_open=False)
    assert held("open") == (0, 1)


def test_a_new_day_has_a_new_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = scope(tokens_per_day=30)
    reserve(mine)
    with pytest.raises(LimitExceeded):
        reserve(mine)
    monkeypatch.setattr(f"{__name__}.NOW", datetime(2026, 11, 27, tzinfo=UTC))
    assert reserve(mine).n_tokens == 30
    assert held("2026-11") == (0, 60)


@pytest.mark.django_db(transaction=True)
def test_two_hundred_at_once_share_a_budget_for_ten() -> None:
    mine = scope(tokens_per_day=300)

    def one(n: int) -> int:
        try:
            # Some settle at once: to hold and to settle must not deadlock.
            grant = reserve(mine, scope(f"key:{n % 3}", tokens_per_month=10_000))
            if n % 7 == 0:
                give_back(meter_ids=grant.meter_ids, n_held=grant.n_tokens, n_used=30)
            return grant.n_tokens
        except LimitExceeded:
            return 0
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        granted = list(pool.map(one, range(200)))
    assert sorted(granted)[-10:] == [30] * 10
    assert sum(granted) == 300
    assert sum(held()) == 300
    assert sum(sum(held("2026-11", f"key:{n}")) for n in range(3)) == 300
