"""What tokens cost, exactly: in whole numbers from the price to the sum, never in floats.

The unit of a cost is the *micro*: a millionth of the smallest step of a price, which is 0.0001 of
the currency that ``settings.CURRENCY`` names. A price is a number of steps for a million tokens, so
a token costs a whole number of micros, and nothing is ever rounded.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Self

from django.core.validators import MinValueValidator
from django.db import models

_DECIMALS: Final = 4
MICROS: Final = 10**6 * 10**_DECIMALS  # of one unit of the currency


def _price(help_text: str) -> "models.DecimalField[Any, Any]":
    return models.DecimalField(
        max_digits=10,
        decimal_places=_DECIMALS,
        default=Decimal(0),
        validators=[MinValueValidator(Decimal(0))],
        help_text=help_text,
    )


class PriceFields(models.Model):
    """For a million tokens of each kind."""

    price_prompt = _price("For a million tokens of prompts.")
    price_cached = _price("For a million tokens of prompts that the prefix cache had.")
    price_completion = _price("For a million tokens of answers.")

    class Meta:
        abstract = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of one token of each kind, in micros."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @classmethod
    def of(cls, row: PriceFields) -> Self:
        return cls(
            prompt=_steps(row.price_prompt),
            cached=_steps(row.price_cached),
            completion=_steps(row.price_completion),
        )

    def cost(self, *, n_prompt: int, n_cached: int, n_completion: int) -> int:
        """Return what tokens cost, in micros. n_cached: of these of the prompt."""
        n_cached = min(n_cached, n_prompt)
        return (
            (n_prompt - n_cached) * self.prompt
            + n_cached * self.cached
            + n_completion * self.completion
        )


FREE: Final = Prices()


def currency_text(cost_micro: int) -> str:
    """Return a cost in the currency, exactly: cents at least, and no more digits than it has."""
    sign, cost_micro = ("-" if cost_micro < 0 else ""), abs(cost_micro)
    whole, rest = divmod(cost_micro, MICROS)
    digits = f"{rest:0{_DECIMALS + 6}d}".rstrip("0")
    return f"{sign}{whole}.{digits:0<2}"


def _steps(price: Decimal) -> int:
    return int(Decimal(price).scaleb(_DECIMALS))
