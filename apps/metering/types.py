"""What the ledger is told about a request: once before dispatch, once when it has ended."""

from dataclasses import dataclass
from enum import StrEnum

from apps.rbac.types import Principal


class Outcome(StrEnum):
    COMPLETED = "completed"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Who asks what of which engine, and the most that it may cost.

    n_reserved_tokens: prompt and the most the engine may produce. lifetime_s: after that long a
    row that nobody settled is an orphan.
    """

    request_id: str
    principal: Principal
    door: str
    endpoint: str
    route_name: str
    deployment_id: int
    model_version_id: int
    engine_name: str
    engine_epoch: int
    n_prompt_tokens: int
    n_reserved_tokens: int
    lifetime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a request ended and what it really cost."""

    request_id: str
    outcome: Outcome
    n_completion_tokens: int
    n_cached_tokens: int = 0
    finish_reason: str = ""
    error_code: str = ""
    ttft_ms: float | None = None
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotals:
    """Sums over a span of the ledger."""

    n_requests: int
    n_failed: int
    n_prompt_tokens: int
    n_completion_tokens: int
