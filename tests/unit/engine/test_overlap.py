"""The next step is scheduled and launched while one is computed: nothing stale is ever read."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.scheduling.drafting import PromptLookup
from engine_service.scheduling.sequence import Sequence
from tests.unit.engine.overlap import FakeFlight, Overlapped
from tests.unit.engine.scheduling import (
    Clock,
    OftenRight,
    check_batch,
    check_blocks,
    check_end,
    make_scheduler,
    make_sequence,
    random_standing,
)
from tests.unit.engine.test_tiers import random_tiers


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_answer_is_the_one_it_has_alone(seed: int) -> None:
    Schedule(random.Random(seed)).run()


class Schedule:
    """Arrivals, aborts, purges, deadlines, forks, preemptions, chunks, shared starts, tiers below
    the pool, outputs that are not finite and flights that must be landed first, all while a step is
    in flight."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = Clock()
        self.n_blocks = rng.randint(5, 14)
        make_proposer = rng.choice((None, None, None, lambda: OftenRight(rng), PromptLookup))
        self.overlaps = make_proposer is None
        store, tiers = random_tiers(rng) if rng.random() < 0.5 else (None, None)
        self.scheduler = make_scheduler(
            n_blocks=self.n_blocks,
            tiers=tiers,
            max_batched_tokens=rng.randint(4, 24),
            target_itl_s=rng.choice((None, 0.5, 2.0)),
            make_proposer=make_proposer,
            clock=self.clock,
        )
        self.engine = Overlapped(self.scheduler, store=store)
        self.arrivals: dict[int, list[Sequence]] = {}
        shared = tuple(rng.randrange(9) for _ in range(rng.randint(4, 13)))
        for key in range(rng.randint(2, 14)):
            start = shared[: rng.choice((0, 4, 8, len(shared)))]
            prompt = (*start, *(rng.randrange(9) for _ in range(rng.randint(1, 6))))
            sequence = make_sequence(
                key,
                prompt=prompt,
                max_new_tokens=rng.randint(1, 6),
                standing=random_standing(rng),
                n=rng.choice((1, 1, 1, 2, 3, 4)),
                tags=(rng.choice("xyz"),),
            )
            if len(prompt) + sequence.max_new_tokens <= self.n_blocks * 4:
                self.arrivals.setdefault(rng.randrange(13), []).append(sequence)
        self.seen: list[Sequence] = []
        self.ends: dict[Sequence, str] = {}

    def run(self) -> None:
        step = 0
        scheduler = self.scheduler
        while step < 13 or scheduler.n_running or scheduler.n_waiting or self.engine.flight:
            self.disturb()
            for sequence in self.arrivals.get(step, ()):
                scheduler.add(sequence)
                self.seen += sequence.family
            self.step()
            step += 1
            assert step < 2000, "the scheduler makes no progress"
        assert self.ends.keys() == set(self.seen)
        assert scheduler.blocks.n_free == self.n_blocks
        for sequence in self.seen:
            check_end(sequence, reason=self.ends[sequence])

    def disturb(self) -> None:
        """What a client or an operator does between two steps."""
        rng = self.rng
        live = [sequence for sequence in self.seen if sequence not in self.ends]
        if live and rng.random() < 0.04:
            sequence = rng.choice(live)
            if sequence.n_generated and rng.random() < 0.5:
                self.scheduler.remove(sequence)
                self.ends[sequence] = "abort"
            else:
                self.scheduler.remove_family(sequence)
                self.end_family(sequence, reason="abort")
        if rng.random() < 0.05:
            tag = rng.choice("xyz")
            self.scheduler.blocks.purge_tiers(tag)
            self.scheduler.blocks.purge(tag)

    def step(self) -> None:
        flight = self.engine.flight
        if flight is not None and (not self.overlaps or self.rng.random() < 0.1):
            self.engine.flight = None
            self.land(flight)
        batch = self.engine.schedule()
        for failure in self.scheduler.take_failures():
            assert failure.error.to_wire().code == "deadline_exceeded"
            self.end_family(failure.sequence, reason="deadline")
        is_idle = not (self.scheduler.n_running or self.scheduler.n_waiting)
        assert batch.rows or is_idle or self.engine.flight
        check_batch(batch, self.scheduler)
        check_blocks(self.scheduler)
        landing = self.engine.launch(batch)
        self.engine.check_findable()
        self.clock.now_s += self.rng.random()
        if landing is not None:
            self.land(landing)

    def land(self, flight: FakeFlight) -> None:
        lost: set[Sequence] = set()
        for sequence in flight.batch.sampled:
            if sequence not in self.ends and self.rng.random() < 0.01:
                lost.update(sequence.family)
                self.end_family(sequence, reason="lost")
        for advance in self.engine.land(flight, lost=frozenset(lost), step_s=self.rng.random() * 2):
            if advance.finish_reason is not None:
                assert advance.sequence not in self.ends
                self.ends[advance.sequence] = advance.finish_reason
        self.engine.check_findable()

    def end_family(self, sequence: Sequence, *, reason: str) -> None:
        for member in sequence.family:
            self.ends.setdefault(member, reason)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_who_is_preempted_in_flight_waits_until_it_lands(is_chunked: bool) -> None:
    """Its prefix is known, for another has computed the same: it would fit again at once."""
    scheduler = make_scheduler(
        n_blocks=6, max_batched_tokens=20, target_itl_s=0.15 if is_chunked else None
    )
    engine = Overlapped(scheduler)
    first, second = (make_sequence(key, prompt=(*range(8), 3, 0)) for key in range(2))
    scheduler.add(first)
    scheduler.add(second)
    batches = []
    while scheduler.n_running or scheduler.n_waiting or engine.flight:
        batch = engine.schedule()
        batches.append([(row.sequence.key, row.n_computed, row.n_new) for row in batch.rows])
        landing = engine.launch(batch)
        engine.check_findable()
        if landing is not None:
            # A token takes 0.05 s, so that chunks are of three.
            engine.land(landing, step_s=1.0 if landing.batch.n_tokens == 20 else 0.01)
        engine.check_findable()
    assert batches[:4] == [
        [(0, 0, 10), (1, 0, 10)],
        [(0, 10, 1), (1, 10, 1)],
        [(0, 11, 1), (1, 11, 1)],
        [(0, 12, 1)],
    ]
    assert scheduler.n_preemptions == 1
    for sequence in (first, second):
        check_end(sequence, reason="length")
