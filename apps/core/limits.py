"""The limits that plans, tenants, keys and end users carry; of several, each holds."""

from dataclasses import dataclass, fields
from typing import Self

from django.core.validators import MinValueValidator
from django.db import models

_AT_LEAST_ONE = (MinValueValidator(1),)


class LimitFields(models.Model):
    """What is empty limits nothing."""

    requests_per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=_AT_LEAST_ONE
    )
    tokens_per_day = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of prompts and answers together; days are UTC's."
    )
    tokens_per_month = models.PositiveBigIntegerField(null=True, blank=True)
    max_concurrent_requests = models.PositiveIntegerField(
        null=True, blank=True, validators=_AT_LEAST_ONE
    )
    max_context_tokens = models.PositiveIntegerField(
        null=True, blank=True, validators=_AT_LEAST_ONE, help_text="Prompt and answer of a request."
    )
    allowed_routes = models.TextField(
        blank=True, help_text="Names of models, one a line. Empty: all of them."
    )

    class Meta:
        abstract = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The same as values; None where there is no limit. allowed_routes: None allows all."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_concurrent_requests: int | None = None
    max_context_tokens: int | None = None
    allowed_routes: frozenset[str] | None = None

    @classmethod
    def of(cls, row: LimitFields) -> Self:
        return cls(
            requests_per_minute=row.requests_per_minute,
            tokens_per_day=row.tokens_per_day,
            tokens_per_month=row.tokens_per_month,
            max_concurrent_requests=row.max_concurrent_requests,
            max_context_tokens=row.max_context_tokens,
            allowed_routes=frozenset(row.allowed_routes.split()) or None,
        )

    def overridden_by(self, other: "Limits") -> "Limits":
        """Return these limits with the other's in their place where it has any."""
        values = {}
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            values[each.name] = mine if theirs is None else theirs
        return Limits(**values)

    def is_wider_than(self, other: "Limits") -> bool:
        """Return whether something is allowed here that the other refuses."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if theirs is None or mine == theirs:
                continue
            # Of sets, > asks for all of the other's: one name more is enough.
            if mine is None or (mine - theirs if isinstance(mine, frozenset) else mine > theirs):
                return True
        return False


UNLIMITED = Limits()
LIMIT_NAMES = tuple(each.name for each in fields(Limits))
