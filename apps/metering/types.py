"""What the ledger is told about a request: once before dispatch, once when it has ended; and what
it says of itself."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from apps.core.limits import Limits
from apps.core.prices import FREE, Prices
from apps.rbac.types import Principal

# Their requests wait for others and are not many at a time: no minute and no crowd limits them.
UNHURRIED_DOORS: Final = frozenset({"batch", "judge"})


class Outcome(StrEnum):
    COMPLETED = "completed"
    ABORTED = "aborted"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTraffic:
    """What a deployment had of a route's requests. n_open: those that still run,
    whenever they came."""

    route_name: str
    deployment_id: int
    n_requests: int
    n_open: int
    n_failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose limits, what they are, and how an error speaks of whom they bind.

    key: names its meters.
    """

    key: str
    said: str
    limits: Limits

    def allows(self, route_name: str) -> bool:
        allowed = self.limits.allowed_routes
        return allowed is None or route_name in allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is left of one limit. n_left: neither used nor held. resets_in_s: until all of it is
    there again."""

    limit: int
    n_left: int
    resets_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Who asks what of which engine, and the most that it may cost.

    n_reserved_tokens: prompt and the most the engine may produce. n_least_tokens: what is of use
    where a budget leaves less. scopes: whose limits hold. is_open: it counts among the requests
    that may be open at a time. lifetime_s: after that long a row that nobody settled is an orphan.
    end_user: whom the tenant serves, as it calls them. attempt: 1, unless the request is tried
    again elsewhere; is_fallback: at a deployment that its route has for that. experiment_arm: of
    the experiments that it takes part in, if it does; rollout_arm: of its route's rollout.
    """

    request_id: str
    principal: Principal
    end_user: str = ""
    attempt: int = 1
    is_fallback: bool = False
    experiment_arm: str = ""
    rollout_arm: str = ""
    door: str
    endpoint: str
    route_name: str
    deployment_id: int
    model_version_id: int
    engine_name: str
    engine_epoch: int
    n_prompt_tokens: int
    n_reserved_tokens: int
    n_least_tokens: int
    scopes: tuple[Scope, ...] = ()
    is_open: bool = True
    lifetime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a reservation got. n_tokens: as many as were reserved, or what a budget left.

    budget: the tightest one after it; None where no budget limits its scopes.
    """

    n_tokens: int
    meter_ids: tuple[int, ...] = ()
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a request ended and what its engine did for it.

    n_prompt_tokens: None where they are those that were reserved; a remote replica's are known at
    the end only. total_ms: None where nobody knows.
    """

    outcome: Outcome
    n_prompt_tokens: int | None = None
    n_completion_tokens: int
    n_cached_tokens: int = 0
    finish_reason: str = ""
    error_code: str = ""
    ttft_ms: float | None = None
    total_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What closes a row: how its request ended, what its reservation holds, and the prices that
    held when it was made."""

    request_id: str
    grant: Grant
    n_prompt_tokens: int
    prices: Prices = FREE
    ending: Ending

    @property
    def is_charged(self) -> bool:
        """False where the platform failed before there was an answer."""
        return self.ending.outcome != Outcome.FAILED or self.ending.n_completion_tokens > 0

    @property
    def n_charged_tokens(self) -> int:
        """Prompt and answer."""
        return self.n_prompt_tokens + self.ending.n_completion_tokens if self.is_charged else 0

    @property
    def cost_micro(self) -> int:
        """What these tokens cost."""
        if not self.is_charged:
            return 0
        return self.prices.cost(
            n_prompt=self.n_prompt_tokens,
            n_cached=self.ending.n_cached_tokens,
            n_completion=self.ending.n_completion_tokens,
        )


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class RefusalKey:
    """Whose requests were refused, in which hour, and why: the code that the answer said."""

    period_start: datetime
    tenant_id: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRequest:
    """A settled row, as those who compare read it. arm: of the rollout or of the experiments,
    whichever was asked for."""

    request_id: str
    arm: str
    tenant_id: int
    api_token_id: int | None
    end_user: str
    door: str
    route_name: str
    deployment_id: int
    model_version_id: int
    attempt: int
    is_fallback: bool
    outcome: Outcome
    finish_reason: str
    n_prompt_tokens: int
    n_completion_tokens: int
    cost_micro: int
    ttft_ms: float | None
    total_ms: float | None
    created_at: datetime

    @property
    def is_failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.INTERRUPTED)

    @property
    def itl_ms(self) -> float | None:
        """Mean time between tokens; None where there were fewer than two."""
        if self.ttft_ms is None or self.total_ms is None or self.n_completion_tokens < 2:
            return None
        return max(self.total_ms - self.ttft_ms, 0.0) / (self.n_completion_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Requests of these end users, or of these tokens, of some tenants."""

    tenant_ids: frozenset[int]
    end_users: frozenset[str] = frozenset()
    api_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTraffic:
    """What a tenant asked of a route: since an hour began, and since an earlier one did."""

    tenant_id: int
    n_hour: int
    n_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotals:
    """Sums over a span of the ledger."""

    n_requests: int
    n_failed: int
    n_prompt_tokens: int
    n_completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterState:
    """What one meter has used and holds, for people."""

    scope: str
    period: str
    n_used: int
    n_held: int

    @property
    def whose(self) -> str:
        kind = self.scope.partition(":")[0]
        return {"tenant": "tenant", "key": "API token", "user": "end user"}.get(kind, kind)

    @property
    def counts(self) -> str:
        return "open requests" if self.period == "open" else f"tokens of {self.period}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Of one request, all of its answers together."""

    n_prompt: int
    n_completion: int


class FindingKind(StrEnum):
    """What the ledger can be at odds with. Of a row that was counted wrongly, or otherwise than by
    its engine, nobody can say what is right, and what a client was told is told; everything else
    can be closed by a service."""

    UNSETTLED = "unsettled"
    MISCOUNTED = "miscounted"
    METER = "meter"
    NOT_ROLLED_UP = "not_rolled_up"
    ROLLUP = "rollup"
    UNJOURNALED = "unjournaled"
    UNLEDGERED = "unledgered"
    JOURNAL = "journal"
    LATE = "late"
    TOLD = "told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What to check. since: a midnight of UTC. limit: how many findings of a kind at most."""

    since: datetime
    now: datetime
    limit: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Two things that should be one. request_ids: of the row, or of those nearest to it.

    subject: what is to be corrected, as ``kind`` has it: a request, a meter's id, a roll-up's key.
    """

    kind: FindingKind
    said: str
    request_ids: tuple[str, ...]
    subject: object

    @property
    def is_correctable(self) -> bool:
        return self.kind not in _LEFT_TO_PEOPLE


_LEFT_TO_PEOPLE: Final = frozenset(
    {
        FindingKind.MISCOUNTED,
        FindingKind.UNJOURNALED,
        FindingKind.UNLEDGERED,
        FindingKind.JOURNAL,
        FindingKind.TOLD,
    }
)
