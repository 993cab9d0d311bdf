"""From rows to words: what state a deployment is in, as an operator would say it. No queries."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from apps.console.types import DeploymentCard, EngineCard, Tone
from apps.deployments.selectors import live_state
from apps.deployments.types import LIVE_STATE_TONES

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.engines.models import EngineProcess

# The agent writes what it saw every two seconds; silence for this long means that it is gone.
SILENT_AFTER_S: Final = 15.0
SILENT: Final = "Silent"
_WELL: Final = ("Ready", "Asleep", "Waiting for memory")

_ENGINE_TONES: Final[dict[str, Tone]] = {
    "ready": "good",
    "fetching": "busy",
    "waiting": "busy",
    "starting": "busy",
    "draining": "busy",
    "backing_off": "warn",
    "unresponsive": "warn",
    "crash_loop": "bad",
    "failed": "bad",
    "stopped": "off",
}
_URGENCY: Final[tuple[Tone, ...]] = ("bad", "warn", "busy", "good", "off")


def engine_card(process: "EngineProcess", *, now: datetime) -> EngineCard:
    stats = process.stats
    age_s = (now - process.last_pong_at).total_seconds() if process.last_pong_at else None
    label, tone = process.state_said, _ENGINE_TONES[process.state]
    if process.state == "ready" and (age_s is None or age_s > SILENT_AFTER_S):
        label, tone = SILENT, "warn"
    is_alive = process.pid is not None
    return EngineCard(
        pk=process.pk,
        name=process.name,
        label=label,
        tone=tone,
        n_running=_count(stats, "n_running") if is_alive else 0,
        n_waiting=_count(stats, "n_waiting") if is_alive else 0,
        n_blocks_used=(
            max(0, _count(stats, "n_blocks_total") - _count(stats, "n_blocks_free"))
            if is_alive
            else 0
        ),
        n_blocks_total=_count(stats, "n_blocks_total") if is_alive else 0,
        pong_age_s=max(0.0, age_s) if age_s is not None else None,
        n_restarts=process.n_restarts,
        rss_bytes=_count(stats, "rss_bytes") if is_alive else 0,
        last_error=process.last_error,
        fetch_said=process.fetch_said,
        tries_again_at=process.tries_again_at,
    )


def deployment_card(
    deployment: "Deployment", *, route_names: Sequence[str], now: datetime
) -> DeploymentCard:
    """The deployment comes with its replicas, their engine processes and its model version."""
    engines = tuple(
        engine_card(replica.engine_process, now=now) for replica in deployment.replicas.all()
    )
    state = live_state(deployment)
    label, tone = state.word, LIVE_STATE_TONES[state.word]
    if label in _WELL and any(engine.label == SILENT for engine in engines):
        label, tone = SILENT, "warn"
    return DeploymentCard(
        pk=deployment.pk,
        name=deployment.name,
        model=deployment.model_name,
        desired=deployment.get_desired_state_display(),
        label=label,
        tone=tone,
        n_ready=state.n_ready,
        n_replicas=state.n_replicas,
        route_names=tuple(route_names),
        engines=engines,
    )


def by_urgency(cards: Iterable[DeploymentCard]) -> tuple[DeploymentCard, ...]:
    """What needs a look first, what is stopped last, each by name."""
    return tuple(sorted(cards, key=lambda card: (_URGENCY.index(card.tone), card.name)))


def overall(cards: Sequence[DeploymentCard]) -> tuple[str, Tone]:
    """The one sentence at the top of the overview."""
    wanted = [card for card in cards if card.tone != "off"]
    if not cards:
        return "Nothing is deployed yet", "off"
    if not wanted:
        return "Every deployment is stopped", "off"
    n_good = sum(card.tone == "good" for card in wanted)
    if n_good == len(wanted):
        return "All deployments are ready", "good"
    tones = {card.tone for card in wanted}
    tone: Tone = "bad" if "bad" in tones else "warn" if "warn" in tones else "busy"
    return f"{n_good} of {len(wanted)} deployments ready", tone


def _count(stats: dict[str, Any], name: str) -> int:
    value = stats.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0
