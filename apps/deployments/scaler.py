"""Carries what the agent sees of its engines to ``autoscaling``, and what that decides to the
rows."""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.autoscaling import Autoscaler, Bounds, Pace, ReplicaLoad
from apps.deployments.services import deployment_scale
from apps.deployments.types import Scalable
from apps.engines.services import is_ready
from apps.engines.types import EngineObservation

logger = logging.getLogger(__name__)

_SCALE_EVERY_S: Final = 1.0


class Scaler:
    """Of one agent. ``idle_at``: of each engine that had nothing to do when it last spoke, when
    that was."""

    def __init__(self, *, pace: Pace) -> None:
        self.idle_at: dict[int, datetime] = {}
        self._seen: dict[int, EngineObservation] = {}
        self._autoscalers: dict[int, Autoscaler] = {}
        self._pace = pace
        self._scaled_at_s = 0.0

    def note(self, observations: Iterable[EngineObservation]) -> None:
        """Take what each engine says at present."""
        self._seen = {seen.process_id: seen for seen in observations if is_ready(seen)}
        self.idle_at = {
            process_id: seen.last_pong_at
            for process_id, seen in self._seen.items()
            if seen.last_pong_at is not None and not _n_requests(seen.stats)
        }

    async def scale(self, scalable: Iterable[Scalable], *, now_s: float) -> None:
        """Decide anew for each, once a second at most."""
        if now_s - self._scaled_at_s < _SCALE_EVERY_S:
            return
        self._scaled_at_s = now_s
        deployments = {each.deployment_id: each for each in scalable}
        self._autoscalers = {
            key: self._autoscalers.get(key) or Autoscaler(pace=self._pace) for key in deployments
        }
        for key, each in deployments.items():
            decision = self._autoscalers[key].decide(
                [_load(self._seen[pid]) for pid in each.process_ids if pid in self._seen],
                n_replicas=each.n_replicas,
                bounds=Bounds(
                    fewest=each.min_replicas,
                    most=each.max_replicas,
                    target_wait_s=each.target_wait_s,
                    max_sequences=each.max_sequences,
                ),
                now_s=now_s,
            )
            if decision.n_replicas != each.n_replicas:
                logger.info("%s: %d replicas. %s", each.name, decision.n_replicas, decision.reason)
                await database_hop(
                    deployment_scale,
                    deployment_id=key,
                    n_replicas=decision.n_replicas,
                    because=decision.reason,
                    actor=SYSTEM,
                )


def _load(seen: EngineObservation) -> ReplicaLoad:
    stats = seen.stats
    return ReplicaLoad(
        key=seen.process_id,
        said_at_s=seen.last_pong_at.timestamp() if seen.last_pong_at is not None else 0.0,
        n_running=stats["n_running"],
        n_waiting=stats["n_waiting"],
        # Who waits for a wake waits for no replica more, which would have to start.
        oldest_wait_s=0.0 if stats.get("is_asleep") else stats["oldest_wait_ms"] / 1000,
        n_tokens=stats["n_prompt_tokens"] - stats["n_cached_tokens"] + stats["n_completion_tokens"],
    )


def _n_requests(stats: Mapping[str, Any]) -> int:
    return int(
        stats.get("n_running", 0) + stats.get("n_waiting", 0)
    )  # of a remote one nobody knows
