"""Refusals of the limits. Each says when the same request may succeed."""

from typing import TYPE_CHECKING

from apps.core.exceptions import AppError

if TYPE_CHECKING:
    from apps.metering.types import Budget


class LimitExceeded(AppError):
    """Base: status 429. budget: what is left of the limit, of requests or of tokens as ``type``
    says; None of one that has no period."""

    status = 429
    type = "requests"
    default_message = "A limit of requests or of tokens is reached."

    def __init__(
        self, message: str, *, retry_after_s: float, budget: "Budget | None" = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.budget = budget


class RateLimited(LimitExceeded):
    """Too many requests within this minute."""

    default_code = "rate_limit_exceeded"


class TooManyConcurrent(LimitExceeded):
    """As many requests are open as may be."""

    default_code = "concurrency_limit_exceeded"


class BudgetHeld(LimitExceeded):
    """The tokens that are left are held by requests that still run."""

    type = "tokens"
    default_code = "rate_limit_exceeded"


class QuotaExceeded(LimitExceeded):
    """The tokens of the day or the month are used up: waiting for seconds is of no use."""

    type = "insufficient_quota"
    default_code = "insufficient_quota"
    should_retry = False
