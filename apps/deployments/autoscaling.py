"""How many replicas of a deployment should run, by how long its requests wait. Pure: what was seen
goes in with the time of seeing it, a number with its reason comes out.

Up at once, as far as the requests that wait fill more replicas; down one at a time, after a quiet
time, and only to so many as have been seen to serve the present load. A step down that had to be
taken back doubles the quiet time before the next one, so that a steady load settles.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

# Of the target: replicas are added while it can still be held, and taken away well below it.
_HIGH: Final = 0.5
_LOW: Final = 0.25
# Of what fewer replicas were seen to serve: the load that they may be left with.
_MARGIN: Final = 0.7
# A step down counts as taken back if one up comes within so many quiet times.
_REGRET: Final = 10
_MOST_PATIENCE: Final = 16
_PERCENT: Final = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """up_after_s: how long requests must be late. settle_s: after a change, until the next step up
    is thought of. down_after_s: how quiet it must have been for a step down."""

    up_after_s: float = 1.0
    settle_s: float = 5.0
    down_after_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """max_sequences: of one replica, how many requests it computes at a time."""

    fewest: int
    most: int
    target_wait_s: float
    max_sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """What a ready replica said last. said_at_s: when that was, by a clock of its own.
    oldest_wait_s: of its requests that wait to be computed. n_tokens: computed since it started,
    those of prompts and of answers."""

    key: int
    said_at_s: float
    n_running: int
    n_waiting: int
    oldest_wait_s: float
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    n_replicas: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    n_ready: int
    n_requests: int
    wait_s: float
    n_tokens: int  # since the sample before


@dataclass(slots=True)
class Autoscaler:
    """Of one deployment. ``decide`` is called about once a second, with a clock that never goes
    back."""

    pace: Pace = field(default_factory=Pace)
    _samples: deque[_Sample] = field(default_factory=deque)
    _seen_tokens: dict[int, int] = field(default_factory=dict)
    # Most tokens a second that so many replicas were seen to make while requests waited for them.
    _served: dict[int, float] = field(default_factory=dict)
    _late_since_s: float | None = None  # by the replicas' clock
    _late_at_s: float = -math.inf
    _changed_at_s: float = -math.inf
    _lowered_at_s: float = -math.inf
    _patience: int = 1

    def decide(
        self, loads: Sequence[ReplicaLoad], *, n_replicas: int, bounds: Bounds, now_s: float
    ) -> Decision:
        """Return how many should run. ``loads``: of those that are ready."""
        within = min(max(n_replicas, bounds.fewest), bounds.most)
        if within != n_replicas:
            self._changed(now_s)
            return Decision(n_replicas=within, reason="Its bounds were changed.")
        self._note(loads, now_s=now_s)
        self._learn(bounds, now_s=now_s)
        if len(loads) < n_replicas:
            self._changed(now_s)  # what starts will change everything that was seen
            return Decision(n_replicas=n_replicas)
        is_late = self._note_late(loads, bounds)
        if is_late and n_replicas < bounds.most:
            return self._up(loads, n_replicas=n_replicas, bounds=bounds, now_s=now_s)
        if n_replicas > bounds.fewest:
            return self._down(n_replicas, bounds=bounds, now_s=now_s)
        return Decision(n_replicas=n_replicas)

    def _up(
        self, loads: Sequence[ReplicaLoad], *, n_replicas: int, bounds: Bounds, now_s: float
    ) -> Decision:
        late_since_s = self._late_at_s if self._late_since_s is None else self._late_since_s
        is_brief = self._late_at_s - late_since_s < self.pace.up_after_s
        if is_brief or now_s - self._changed_at_s < self.pace.settle_s:
            return Decision(n_replicas=n_replicas)
        is_taken_back = now_s - self._lowered_at_s < _REGRET * self._quiet_s
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if is_taken_back else 1
        n_requests = self._samples[-1].n_requests
        n_at_a_time = sum(load.n_running for load in loads) / n_replicas
        n_filled = math.ceil(n_requests / n_at_a_time) if n_at_a_time else 0
        n_wanted = min(max(n_replicas + 1, n_filled), bounds.most)
        reason = (
            f"{n_requests} requests at {n_replicas} replicas, and one waits for "
            f"{self._samples[-1].wait_s:.1f} s: {bounds.target_wait_s:g} s is the most."
        )
        self._changed(now_s)
        return Decision(n_replicas=n_wanted, reason=reason)

    def _down(self, n_replicas: int, *, bounds: Bounds, now_s: float) -> Decision:
        quiet_s = self._quiet_s
        quiet_since_s = max(self._changed_at_s, self._samples[0].at_s)
        recent = [sample for sample in self._samples if sample.at_s >= now_s - quiet_s]
        n_left = n_replicas - 1
        n_together = _percentile([sample.n_requests for sample in recent])
        tokens_per_s = self._tokens_per_s(since_s=now_s - quiet_s)
        if (
            now_s - quiet_since_s < quiet_s
            or max(sample.wait_s for sample in recent) > _LOW * bounds.target_wait_s
            or n_together > n_left * bounds.max_sequences
            or tokens_per_s > _MARGIN * self._servable(n_left)
        ):
            return Decision(n_replicas=n_replicas)
        reason = (
            f"For {quiet_s:.0f} s hardly any request waited, {n_together} ran at a time, and "
            f"{n_left} can serve as many."
        )
        self._changed(now_s)
        self._lowered_at_s = now_s
        return Decision(n_replicas=n_left, reason=reason)

    @property
    def _quiet_s(self) -> float:
        return self.pace.down_after_s * self._patience

    def _note(self, loads: Sequence[ReplicaLoad], *, now_s: float) -> None:
        n_tokens = sum(
            max(0, load.n_tokens - self._seen_tokens.get(load.key, load.n_tokens)) for load in loads
        )
        self._seen_tokens = {load.key: load.n_tokens for load in loads}
        self._samples.append(
            _Sample(
                at_s=now_s,
                n_ready=len(loads),
                n_requests=sum(load.n_running + load.n_waiting for load in loads),
                wait_s=max((load.oldest_wait_s for load in loads), default=0.0),
                n_tokens=n_tokens,
            )
        )
        # The oldest one kept is at least as old as the quiet time.
        while len(self._samples) > 1 and self._samples[1].at_s <= now_s - self._quiet_s:
            self._samples.popleft()

    def _note_late(self, loads: Sequence[ReplicaLoad], bounds: Bounds) -> bool:
        """Note since when requests have been late, and say whether they are. What a replica said
        once and nobody has heard of it since counts once."""
        late_at_s = [
            load.said_at_s for load in loads if load.oldest_wait_s > _HIGH * bounds.target_wait_s
        ]
        if not late_at_s:
            self._late_since_s = None
            return False
        self._late_at_s = max(late_at_s)
        if self._late_since_s is None:
            self._late_since_s = self._late_at_s
        return True

    def _learn(self, bounds: Bounds, *, now_s: float) -> None:
        """Remember what those that are ready serve when they have all that they can: requests have
        been waiting for them all along. While others start, that is so."""
        since_s = now_s - self.pace.settle_s
        recent = [sample for sample in self._samples if sample.at_s >= since_s]
        n_ready = recent[-1].n_ready
        is_whole = self._samples[0].at_s <= since_s
        is_full = all(
            sample.n_ready == n_ready and sample.wait_s > _LOW * bounds.target_wait_s
            for sample in recent
        )
        if is_whole and is_full and n_ready:
            served = self._tokens_per_s(since_s=since_s)
            self._served[n_ready] = max(served, self._served.get(n_ready, 0.0))

    def _changed(self, now_s: float) -> None:
        self._changed_at_s = now_s
        self._late_since_s = None

    def _tokens_per_s(self, *, since_s: float) -> float:
        recent = [sample for sample in self._samples if sample.at_s > since_s]
        if not recent:
            return 0.0
        span_s = recent[-1].at_s - max(since_s, self._samples[0].at_s)
        return sum(sample.n_tokens for sample in recent) / span_s if span_s > 0 else 0.0

    def _servable(self, n_replicas: int) -> float:
        """Return what so many were seen to serve when they had all that they could; or what the
        nearest fewer would give. Without bound where nothing was seen."""
        known = max((n for n in self._served if n <= n_replicas), default=None)
        return math.inf if known is None else self._served[known] * n_replicas / known


def _percentile(values: Sequence[int]) -> int:
    return sorted(values)[len(values) * _PERCENT // 100]
