"""What a request costs: by the prices of the moment in which it came, exactly, and stored."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from apps.core.prices import Prices
from apps.metering.models import UsageRecord
from apps.metering.services import orphans_close, reserve, settle
from apps.metering.types import Outcome, Reservation
from apps.rbac.selectors import principal_of_secret, principal_of_user
from apps.tenants.models import Plan
from tests.factories import ApiTokenFactory, MembershipFactory
from tests.integration.metering.test_services import PRINCIPAL, RESERVATION, settlement
from tests.rows import all_of

pytestmark = pytest.mark.django_db

PRICES = Prices(prompt=1_000, cached=100, completion=5_000)
PRICED = replace(RESERVATION, principal=replace(PRINCIPAL, prices=PRICES))


def cost(reservation: Reservation = PRICED, **ending: Any) -> int:
    grant = reserve(reservation)
    settle(replace(settlement(grant, **ending), prices=reservation.principal.prices))
    return all_of(UsageRecord).get().cost_micro


def test_prices_come_with_whoever_asks() -> None:
    dear = {"price_prompt": Decimal("0.15"), "price_completion": Decimal("0.6")}
    token = ApiTokenFactory(**{f"tenant__plan__{name}": price for name, price in dear.items()})
    member = MembershipFactory(tenant=token.tenant)
    expected = Prices(prompt=1_500, cached=0, completion=6_000)
    assert principal_of_secret(token.secret).prices == expected
    assert principal_of_user(member.user).prices == expected
    # A changed plan holds for those who come after it.
    Plan.objects.update(price_prompt=1)
    assert principal_of_secret(token.secret).prices.prompt == 10_000


def test_each_kind_of_token_has_its_price() -> None:
    # 10 of the prompt, 8 of them cached; 12 of the answer.
    assert cost() == 2 * 1_000 + 8 * 100 + 12 * 5_000


@pytest.mark.parametrize(
    ("outcome", "n_made", "expected"),
    [
        (Outcome.ABORTED, 3, 2_800 + 15_000),
        (Outcome.ABORTED, 0, 2_800),
        (Outcome.FAILED, 3, 2_800 + 15_000),
        (Outcome.FAILED, 0, 0),
    ],
)
def test_what_counts_nothing_costs_nothing(outcome: Outcome, n_made: int, expected: int) -> None:
    assert cost(outcome=outcome, n_completion_tokens=n_made) == expected


def test_the_row_keeps_the_prices_that_held() -> None:
    cost()
    assert all_of(UsageRecord).get().prices == PRICES


def test_a_request_whose_gateway_is_gone_pays_its_prompt() -> None:
    reserve(replace(PRICED, lifetime_s=-1.0))
    assert orphans_close(timezone.now()) == 1
    row = all_of(UsageRecord).get()
    assert (row.outcome, row.cost_micro) == ("interrupted", 10 * 1_000)


def test_the_largest_request_at_the_highest_price_fits() -> None:
    highest = 10**10 - 1
    dear = replace(
        PRINCIPAL,
        prices=Prices(completion=highest),
        limits=replace(PRINCIPAL.limits, tokens_per_day=None),
    )
    n_tokens = 100_000_000
    reservation = replace(RESERVATION, principal=dear, scopes=())
    assert cost(reservation, n_completion_tokens=n_tokens) == n_tokens * highest


def test_the_row_says_who_asked_and_in_which_attempt() -> None:
    reserve(replace(RESERVATION, end_user="ann\0e", attempt=2, experiment_arm="b"))
    row = all_of(UsageRecord).get()
    assert (row.end_user, row.attempt, row.experiment_arm) == ("ann\ufffde", 2, "b")
