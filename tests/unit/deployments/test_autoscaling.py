"""Autoscaling on simulated replicas: bounds, a load step, a steady load, a night."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.deployments.autoscaling import Autoscaler, Bounds, Pace, ReplicaLoad

SLOTS = 4
SERVICE_S = 2.0
TOKENS = 50
START_S = 6.0
TICK_S = 0.25
PER_REPLICA = SLOTS / SERVICE_S  # requests a second
BOUNDS = Bounds(fewest=1, most=3, target_wait_s=1.0, max_sequences=SLOTS)


@dataclass
class Replica:
    ready_at: float
    queue: deque[float] = field(default_factory=deque)
    running: list[float] = field(default_factory=list)  # when each ends
    n_tokens: int = 0

    def step(self, now: float, rng: random.Random) -> list[float]:
        """Go on to ``now``; return how long those waited that were begun."""
        ended = [end for end in self.running if end <= now]
        self.n_tokens += TOKENS * len(ended)
        self.running = [end for end in self.running if end > now]
        waits = []
        while self.queue and len(self.running) < SLOTS:
            waits.append(now - self.queue.popleft())
            self.running.append(now + SERVICE_S * rng.uniform(0.5, 1.5))
        return waits


@dataclass
class Fleet:
    """Replicas behind a balancer by fewest requests, scaled once a second."""

    rng: random.Random
    bounds: Bounds = BOUNDS
    pace: Pace = field(default_factory=Pace)
    now: float = 0.0
    next_at: float = 0.0
    changes: list[tuple[float, int]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.autoscaler = Autoscaler(pace=self.pace)
        self.replicas = [Replica(ready_at=0.0) for _ in range(self.bounds.fewest)]
        self.leaving: list[Replica] = []
        self.n_ticks = 0

    def run(self, duration_s: float, *, per_s: float) -> None:
        end = self.now + duration_s
        self.next_at = max(self.next_at, self.now)
        if per_s:
            self.next_at = self.now + self.rng.expovariate(per_s)
        while self.now < end:
            self.now += TICK_S
            while per_s and self.next_at <= self.now:
                ready = [each for each in self.replicas if each.ready_at <= self.now]
                least = min(ready, key=lambda each: len(each.queue) + len(each.running))
                least.queue.append(self.next_at)
                self.next_at += self.rng.expovariate(per_s)
            for each in (*self.replicas, *self.leaving):
                self.waits += [(self.now, wait) for wait in each.step(self.now, self.rng)]
            self.n_ticks += 1
            if self.n_ticks % 4 == 0:
                self.scale()

    def scale(self) -> None:
        loads = [
            ReplicaLoad(
                key=id(each),
                said_at_s=self.now,
                n_running=len(each.running),
                n_waiting=len(each.queue),
                oldest_wait_s=self.now - each.queue[0] if each.queue else 0.0,
                n_tokens=each.n_tokens,
            )
            for each in self.replicas
            if each.ready_at <= self.now
        ]
        decision = self.autoscaler.decide(
            loads, n_replicas=len(self.replicas), bounds=self.bounds, now_s=self.now
        )
        n = decision.n_replicas
        assert self.bounds.fewest <= n <= self.bounds.most
        if n == len(self.replicas):
            return
        assert decision.reason
        self.reasons.append(decision.reason)
        self.changes.append((self.now, n))
        while len(self.replicas) < n:
            self.replicas.append(Replica(ready_at=self.now + START_S))
        self.leaving += self.replicas[n:]
        del self.replicas[n:]

    def p95_wait(self, *, since: float) -> float:
        waits = sorted(wait for at, wait in self.waits if at >= since)
        return waits[int(0.95 * len(waits))]


SHARES = (0.05, 0.3, 0.6)

phases = st.lists(st.tuples(st.floats(0.0, 12.0), st.floats(5.0, 200.0)), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(phases=phases, seed=st.integers(0, 2**32), fewest=st.integers(1, 4), span=st.integers(0, 4))
def test_it_stays_within_its_bounds_and_goes_down_one_at_a_time(
    phases: list[tuple[float, float]], seed: int, fewest: int, span: int
) -> None:
    bounds = Bounds(fewest=fewest, most=fewest + span, target_wait_s=1.0, max_sequences=SLOTS)
    fleet = Fleet(random.Random(seed), bounds=bounds, pace=Pace(down_after_s=20.0))
    for per_s, duration_s in phases:
        fleet.run(duration_s, per_s=per_s)
    steps = [(0.0, fewest), *fleet.changes]
    for (before_at, before), (at, n) in pairwise(steps):
        assert n > before or n == before - 1
        assert at - before_at >= (20.0 if n < before else 1.0)


# What chance brings is judged over arrivals that are the same each time: of any others some are
# bound to come in a burst that nothing can meet.
@pytest.mark.parametrize("seed", range(10))
def test_a_load_step_is_met_at_once_and_the_target_then_held(seed: int) -> None:
    fleet = Fleet(random.Random(seed))
    fleet.run(120.0, per_s=0.3 * PER_REPLICA)
    assert fleet.changes == []
    begun = fleet.now
    fleet.run(240.0, per_s=1.8 * PER_REPLICA)
    assert [n for _, n in fleet.changes] in ([3], [2, 3])
    assert fleet.changes[-1][0] - begun < 60.0
    assert fleet.p95_wait(since=begun + 90.0) < BOUNDS.target_wait_s


@pytest.mark.parametrize(("seed", "share"), [(n, share) for n in range(3) for share in SHARES])
def test_a_steady_load_settles(seed: int, share: float) -> None:
    """Two hours. The first finds out what is needed; then a burst may call for one more, and what
    it took is given back once."""
    fleet = Fleet(random.Random(seed))
    fleet.run(7200.0, per_s=share * 3 * PER_REPLICA)
    late = [n for at, n in fleet.changes if at > 3600.0]
    assert len(late) <= 8, fleet.changes  # one in 7.5 minutes
    assert fleet.p95_wait(since=600.0) < BOUNDS.target_wait_s


def test_a_night_brings_it_down_step_by_step_and_says_why() -> None:
    fleet = Fleet(random.Random(1))
    fleet.run(120.0, per_s=2.5 * PER_REPLICA)
    assert len(fleet.replicas) == 3
    quiet_from = fleet.now
    fleet.run(400.0, per_s=0.0)
    assert [n for _, n in fleet.changes[-2:]] == [2, 1]
    first, second = (at for at, _ in fleet.changes[-2:])
    assert first >= quiet_from + 100.0
    assert second - first >= 120.0
    assert fleet.reasons[-1] == (
        "For 120 s hardly any request waited, 0 ran at a time, and 1 can serve as many."
    )
    assert "1 s is the most" in fleet.reasons[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("share", "n_needed"), [(0.2, 1), (0.4, 2), (0.7, 2)])
def test_after_a_burst_no_more_stay_than_are_needed(seed: int, share: float, n_needed: int) -> None:
    """What a replica can serve is learnt from it while the others start, not from the quiet time
    before the burst."""
    fleet = Fleet(random.Random(seed))
    fleet.run(60.0, per_s=0.0)
    fleet.run(90.0, per_s=2.5 * PER_REPLICA)
    assert len(fleet.replicas) == 3
    fleet.run(900.0, per_s=share * PER_REPLICA)
    assert len(fleet.replicas) <= n_needed, fleet.changes


def load(**fields: float) -> ReplicaLoad:
    numbers = {"n_running": 4, "n_waiting": 4, "oldest_wait_s": 3.0, "n_tokens": 0, **fields}
    return ReplicaLoad(key=1, **{"said_at_s": 0.0, **numbers})  # type: ignore[arg-type]


def test_as_many_are_added_as_the_waiting_requests_fill() -> None:
    autoscaler = Autoscaler()
    bounds = Bounds(fewest=1, most=9, target_wait_s=1.0, max_sequences=4)
    for now in (0.0, 0.5):
        late = load(n_waiting=13, said_at_s=now)
        decision = autoscaler.decide([late], n_replicas=1, bounds=bounds, now_s=now)
        assert decision.n_replicas == 1
    late = load(n_waiting=13, said_at_s=1.0)
    decision = autoscaler.decide([late], n_replicas=1, bounds=bounds, now_s=1.0)
    assert decision.n_replicas == 5
    assert decision.reason == (
        "17 requests at 1 replicas, and one waits for 3.0 s: 1 s is the most."
    )


def test_what_was_said_once_is_not_late_for_long() -> None:
    """An engine in a long step says nothing new: that one request waited once is all one knows."""
    autoscaler = Autoscaler()
    for now in range(4):
        decision = autoscaler.decide([load()], n_replicas=1, bounds=BOUNDS, now_s=float(now))
        assert decision.n_replicas == 1
    late = load(said_at_s=3.5)
    assert autoscaler.decide([late], n_replicas=1, bounds=BOUNDS, now_s=4.0).n_replicas == 2


def test_while_some_start_nothing_changes() -> None:
    autoscaler = Autoscaler()
    for now in range(100):
        late = load(said_at_s=float(now))
        decision = autoscaler.decide([late], n_replicas=2, bounds=BOUNDS, now_s=float(now))
        assert decision.n_replicas == 2


def test_changed_bounds_count_at_once() -> None:
    autoscaler = Autoscaler()
    for n_replicas, expected in ((5, 3), (0, 1)):
        decision = autoscaler.decide([], n_replicas=n_replicas, bounds=BOUNDS, now_s=0.0)
        assert decision.n_replicas == expected
