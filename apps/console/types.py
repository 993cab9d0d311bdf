"""What the overview shows, ready to print."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from apps.metering.types import UsageTotals

if TYPE_CHECKING:
    from apps.audit.models import AuditEvent

Tone = Literal["good", "busy", "warn", "bad", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One engine process. pong_age_s: since it last answered, or None when it never did."""

    pk: int
    name: str
    label: str
    tone: Tone
    n_running: int
    n_waiting: int
    n_blocks_used: int
    n_blocks_total: int
    pong_age_s: float | None
    n_restarts: int
    rss_bytes: int
    last_error: str
    tries_again_at: datetime | None = None
    fetch_said: str = ""

    @property
    def blocks_percent(self) -> int:
        return round(100 * self.n_blocks_used / self.n_blocks_total) if self.n_blocks_total else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentCard:
    pk: int
    name: str
    model: str
    desired: str
    label: str
    tone: Tone
    n_ready: int
    n_replicas: int
    route_names: tuple[str, ...]
    engines: tuple[EngineCard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """n_open: requests that the engines are working on or hold waiting."""

    at: datetime
    label: str
    tone: Tone
    deployments: tuple[DeploymentCard, ...]
    today: UsageTotals
    n_open: int
    events: "tuple[AuditEvent, ...]"

    @property
    def n_tokens_today(self) -> int:
        return self.today.n_prompt_tokens + self.today.n_completion_tokens

    @property
    def failed_percent(self) -> str:
        share = self.today.n_failed / self.today.n_requests if self.today.n_requests else 0.0
        return f"{100 * share:.1f}"
