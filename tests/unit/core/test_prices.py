"""Costs are whole numbers, whatever the price."""

from decimal import Decimal

import pytest

from apps.core.prices import FREE, MICROS, Prices, currency_text
from apps.tenants.models import Plan


def test_a_million_tokens_cost_their_price() -> None:
    plan = Plan(
        price_prompt=Decimal("0.15"),
        price_cached=Decimal("0.0375"),
        price_completion=Decimal("0.6001"),
    )
    prices = Prices.of(plan)
    assert prices == Prices(prompt=1500, cached=375, completion=6001)
    for name, price in (("prompt", "0.15"), ("completion", "0.6001")):
        counts = {"n_prompt": 0, "n_cached": 0, "n_completion": 0, f"n_{name}": 10**6}
        assert currency_text(prices.cost(**counts)) == price
    cached = prices.cost(n_prompt=10**6, n_cached=10**6, n_completion=0)
    assert currency_text(cached) == "0.0375"


def test_one_token_is_not_rounded() -> None:
    least = Prices.of(Plan(price_prompt=Decimal("0.0001")))
    assert least.cost(n_prompt=1, n_cached=0, n_completion=0) == 1
    assert currency_text(1) == "0.0000000001"


def test_cached_tokens_have_their_own_price() -> None:
    prices = Prices(prompt=10, cached=3, completion=20)
    assert prices.cost(n_prompt=100, n_cached=40, n_completion=5) == 60 * 10 + 40 * 3 + 5 * 20
    # Never more of them than the prompt has.
    assert prices.cost(n_prompt=100, n_cached=140, n_completion=0) == 100 * 3


def test_a_plan_without_prices_is_free() -> None:
    assert Prices.of(Plan()) == FREE
    assert FREE.cost(n_prompt=10**9, n_cached=5, n_completion=10**9) == 0


@pytest.mark.parametrize(
    ("cost_micro", "text"),
    [
        (0, "0.00"),
        (MICROS, "1.00"),
        (12 * MICROS + MICROS // 2, "12.50"),
        (MICROS // 8, "0.125"),
        (-MICROS // 8, "-0.125"),
        (10**18 + 1, "100000000.0000000001"),
    ],
)
def test_an_amount_is_said_exactly(cost_micro: int, text: str) -> None:
    assert currency_text(cost_micro) == text
