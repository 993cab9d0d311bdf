"""Who goes first: tenants by what they had, priorities, deadlines, bounds; and long prompts."""

import itertools
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.config import EngineConfig
from engine_service.errors import Overloaded, RequestError
from engine_service.protocol import Standing
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence
from tests.unit.engine.scheduling import (
    Clock,
    make_scheduler,
    make_sequence,
    run_random_schedule,
    run_step,
)

N_SEQUENCES = 4


def waiting(key: int, *, n_prompt: int = 4, n_new: int = 4, **standing: object) -> Sequence:
    return make_sequence(
        key,
        prompt=tuple((key * 31 + i) % 97 + 10 for i in range(n_prompt)),
        max_new_tokens=n_new,
        standing=Standing(**standing),  # type: ignore[arg-type]
        ignore_eos=True,
    )


def admitted_in_order(scheduler: Scheduler) -> list[int]:
    """Run to the end; return the keys in the order of their first row."""
    order: list[int] = []
    while scheduler.n_running or scheduler.n_waiting:
        order += [key for key, _, _ in run_step(scheduler) if key not in order]
    return order


@given(seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_random_schedule_ends_every_request_and_loses_no_block(seed: int) -> None:
    run_random_schedule(random.Random(seed))


@pytest.mark.prove
def test_ten_thousand_random_schedules() -> None:
    runs = [run_random_schedule(random.Random(seed)) for seed in range(10_000)]
    names = ("preemptions", "block copies", "accepted drafts")
    for name, counts in zip(names, zip(*runs, strict=True), strict=True):
        n_with = sum(n > 0 for n in counts)
        print(f"10,000 schedules, {sum(counts)} {name} in {n_with} of them")
        assert n_with > 1000


def spread_of_service(rng: random.Random, *, n_steps: int) -> tuple[float, float]:
    """Keep tenants a and b backlogged; return the widest gap in service by weight, and the bound.

    The gap is that between any two moments, as the theorem has it.
    """
    scheduler = make_scheduler(
        n_blocks=rng.randint(6, 20),
        max_batched_tokens=rng.randint(4, 40),
        max_sequences=N_SEQUENCES,
    )
    weights = {"a": 1.0, "b": rng.choice((0.5, 1.0, 3.0))}
    # One tenant may send small requests only, so that those of the other are many times as large.
    largest = {"a": rng.randint(1, 12), "b": rng.randint(1, 12)}
    keys = itertools.count()
    n_waiting: dict[str, int] = defaultdict(int)
    service = {"a": 0.0, "b": 0.0}
    known: dict[int, int] = {}
    lowest = highest = 0.0
    for _ in range(n_steps):
        for tenant, weight in weights.items():
            while n_waiting[tenant] < 6:
                n_prompt = rng.randint(1, largest[tenant])
                sequence = waiting(
                    next(keys),
                    n_prompt=n_prompt,
                    n_new=largest[tenant],
                    tenant=tenant,
                    weight=weight,
                )
                scheduler.add(sequence)
                n_waiting[tenant] += 1
        batch = scheduler.schedule()
        for row in batch.rows:
            standing = row.sequence.standing
            if row.sequence.key not in known:
                n_waiting[standing.tenant] -= 1
                known[row.sequence.key] = row.sequence.n_prompt
                service[standing.tenant] += row.sequence.n_prompt / standing.weight
        for advance in scheduler.update(batch, token_ids=[(1,)] * len(batch.sampled)):
            standing = advance.sequence.standing
            service[standing.tenant] += 1 / standing.weight
        gap = service["a"] - service["b"]
        lowest, highest = min(lowest, gap), max(highest, gap)
    assert min(service.values()) > n_steps / 50
    most = max((1 + N_SEQUENCES) * largest[tenant] / weights[tenant] for tenant in "ab")
    return highest - lowest, 2 * most


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_service_of_two_backlogged_tenants_differs_by_no_more_than_the_bound(seed: int) -> None:
    spread, bound = spread_of_service(random.Random(seed), n_steps=150)
    assert spread <= bound


@pytest.mark.prove
def test_the_bound_on_service_holds_for_long() -> None:
    worst = 0.0
    for seed in range(300):
        spread, bound = spread_of_service(random.Random(seed), n_steps=2000)
        assert spread <= bound
        worst = max(worst, spread / bound)
    print(f"300 runs of 2,000 steps: the widest gap was {worst:.2f} of the bound")


def test_a_flood_of_one_tenant_does_not_hold_back_another() -> None:
    scheduler = make_scheduler(max_sequences=1)
    for key in range(4):
        scheduler.add(waiting(key, tenant="flood"))
    run_step(scheduler)
    scheduler.add(waiting(10, tenant="other"))
    scheduler.add(waiting(11, tenant="other"))
    # The newcomer starts level with the flood, whose first request is charged by then.
    assert admitted_in_order(scheduler)[1:] == [10, 1, 11, 2, 3]


def test_weight_divides_what_a_tenant_is_charged() -> None:
    scheduler = make_scheduler(max_sequences=1)
    for key in range(6):
        scheduler.add(waiting(key, tenant="heavy", weight=2.0))
        scheduler.add(waiting(10 + key, tenant="light"))
    assert admitted_in_order(scheduler)[:9] == [0, 10, 1, 2, 11, 3, 4, 12, 5]


def test_idle_tenants_save_up_nothing() -> None:
    scheduler = make_scheduler(max_sequences=1)
    scheduler.add(waiting(0, tenant="a"))
    admitted_in_order(scheduler)
    for key in range(10, 15):
        scheduler.add(waiting(key, tenant="b"))
    while scheduler.n_waiting > 2:
        run_step(scheduler)
    for key in range(1, 4):
        scheduler.add(waiting(key, tenant="a"))
    # Had it kept its lag of some 24 tokens, all three of a would be first.
    assert admitted_in_order(scheduler)[1:] == [1, 13, 2, 14, 3]


def test_many_idle_tenants_are_forgotten() -> None:
    scheduler = make_scheduler(max_sequences=4, max_batched_tokens=16)
    for key in range(1500):
        scheduler.add(waiting(key, n_prompt=1, n_new=1, tenant=f"t{key}"))
        run_step(scheduler)
    assert len(scheduler._waiting._counters) <= 1100


def test_priority_goes_before_what_tenants_had_and_is_preempted_last() -> None:
    scheduler = make_scheduler(n_blocks=4, block_size=2, max_sequences=2, max_batched_tokens=20)
    scheduler.add(waiting(0, n_prompt=3, n_new=4, tenant="a"))
    run_step(scheduler)
    scheduler.add(waiting(1, n_prompt=3, n_new=4, tenant="b"))
    scheduler.add(waiting(2, n_prompt=3, n_new=4, tenant="a", priority=1))
    assert run_step(scheduler) == [(0, 3, 1), (2, 0, 3)]
    assert [sequence.key for sequence in scheduler.running] == [2, 0]
    while scheduler.n_preemptions == 0:
        run_step(scheduler)
    assert [sequence.key for sequence in scheduler.running] == [2]


def test_one_tenant_cannot_fill_the_queue() -> None:
    scheduler = make_scheduler(max_waiting=3, max_waiting_per_tenant=2)
    scheduler.add(waiting(0, tenant="a"))
    scheduler.add(waiting(1, tenant="a"))
    with pytest.raises(Overloaded, match="2 requests of this tenant"):
        scheduler.add(waiting(2, tenant="a"))
    scheduler.add(waiting(3, tenant="b"))
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        scheduler.add(waiting(4, tenant="b"))
    assert sorted(admitted_in_order(scheduler)) == [0, 1, 3]


def test_what_waits_beyond_its_deadline_is_failed_and_what_runs_is_not() -> None:
    clock = Clock()
    scheduler = make_scheduler(max_sequences=1, clock=clock)
    running, late, patient = waiting(0, deadline_s=1.0), waiting(1, deadline_s=2.0), waiting(2)
    for sequence in (running, late, patient):
        scheduler.add(sequence)
    run_step(scheduler)
    clock.now_s = 1.9
    run_step(scheduler)
    assert scheduler.take_failures() == []
    clock.now_s = 2.0
    assert run_step(scheduler) == [(0, 5, 1)]
    (failure,) = scheduler.take_failures()
    assert failure.sequence is late
    error = failure.error.to_wire()
    assert (error.kind, error.code, error.retry_after_s) == ("overloaded", "deadline_exceeded", 1.0)
    assert admitted_in_order(scheduler) == [0, 2]


def test_a_stall_fails_one_request_and_the_others_go_on() -> None:
    scheduler = make_scheduler(n_blocks=8)
    lost = scheduler.blocks.claim(known=(), n_new=4)  # as if some fault had leaked them
    assert lost is not None
    scheduler.add(waiting(0, n_prompt=20, n_new=4))
    scheduler.add(waiting(1, n_prompt=4, n_new=4))
    assert run_step(scheduler) == []
    (failure,) = scheduler.take_failures()
    assert (failure.sequence.key, failure.error.to_wire().code) == (0, "stalled")
    assert admitted_in_order(scheduler) == [1]
    assert scheduler.blocks.n_free == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0.0),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("priority", 101),
        ("deadline_s", 0.0),
        ("deadline_s", float("nan")),
        ("tenant", "t" * 257),
    ],
)
def test_a_standing_out_of_range_is_refused(name: str, value: object) -> None:
    scheduler = make_scheduler()
    with pytest.raises(RequestError) as caught:
        scheduler.add(waiting(0, **{name: value}))
    assert (caught.value.code, caught.value.param) == ("invalid_value", name)
    assert scheduler.n_waiting == 0


def test_a_long_prompt_does_not_hold_short_ones_back_nor_they_it() -> None:
    scheduler = make_scheduler(n_blocks=64, max_batched_tokens=16, max_sequences=8)
    scheduler.add(waiting(0, n_prompt=100))
    assert run_step(scheduler) == [(0, 0, 16)]
    for key in (1, 2, 3, 4):
        scheduler.add(waiting(key, n_prompt=4))
    # A quarter of the step is the long one's; three short ones fit into the rest.
    assert run_step(scheduler) == [(0, 16, 4), (1, 0, 4), (2, 0, 4), (3, 0, 4)]
    assert run_step(scheduler) == [(0, 20, 9), (1, 4, 1), (2, 4, 1), (3, 4, 1), (4, 0, 4)]


def test_a_short_prompt_passes_the_long_ones_before_it() -> None:
    scheduler = make_scheduler(n_blocks=256, max_batched_tokens=16, max_sequences=8)
    for key in range(3):
        scheduler.add(waiting(key, n_prompt=200))
    scheduler.add(waiting(3, n_prompt=8))
    assert run_step(scheduler) == [(0, 0, 8), (3, 0, 8)]


def test_prompts_that_come_together_share_their_prefix() -> None:
    scheduler = make_scheduler(n_blocks=64, max_batched_tokens=9, max_sequences=8)
    prompts = [make_sequence(key, prompt=(*range(8), key), max_new_tokens=1) for key in range(4)]
    for sequence in prompts:
        scheduler.add(sequence)
    while scheduler.n_running or scheduler.n_waiting:
        run_step(scheduler)
    assert [sequence.n_cached for sequence in prompts] == [0, 8, 8, 8]


def test_prompts_of_one_length_are_computed_one_after_the_other() -> None:
    scheduler = make_scheduler(n_blocks=64, max_batched_tokens=16, max_sequences=4)
    for key in range(4):
        scheduler.add(waiting(key, n_prompt=32, n_new=1))
    done = []
    for step in range(8):
        batch = scheduler.schedule()
        for advance in scheduler.update(batch, token_ids=[(1,)] * len(batch.sampled)):
            done.append((step, advance.sequence.key))
    assert done == [(1, 0), (3, 1), (5, 2), (7, 3)]


def test_by_default_two_tenants_that_flood_leave_each_other_room(tmp_path: Path) -> None:
    config = EngineConfig(model_dir=tmp_path)
    assert config.max_waiting_per_tenant is not None
    assert 2 * config.max_waiting_per_tenant <= config.max_waiting


def test_the_oldest_wait_is_that_of_who_was_never_computed_batches_left_out() -> None:
    clock = Clock()
    scheduler = make_scheduler(max_sequences=1, clock=clock)
    assert scheduler.oldest_wait_s() == 0.0
    scheduler.add(waiting(0, n_new=3))
    run_step(scheduler)
    for key, standing in enumerate(({"priority": -1}, {"tenant": "a"}, {"tenant": "b"}), start=1):
        clock.now_s = float(key)
        scheduler.add(waiting(key, **standing))  # type: ignore[arg-type]
    clock.now_s = 10.0
    assert scheduler.n_waiting == 3
    assert scheduler.oldest_wait_s() == 8.0
    for _ in range(3):  # the first ends, and the next begins
        run_step(scheduler)
    assert scheduler.oldest_wait_s() == 7.0
