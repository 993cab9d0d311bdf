"""How many tokens a step may compute: by its target, by its decodes, by who waits."""

import pytest

from engine_service.scheduling.budget import StepBudget
from engine_service.scheduling.drafting import StepCost
from tests.unit.engine.scheduling import Clock, make_scheduler, make_sequence


def settle(budget: StepBudget, *, n_decodes: int, base_s: float, token_s: float) -> list[int]:
    """Run 60 steps that cost ``base_s`` and ``token_s`` a token; return the prefill of each."""
    sizes = []
    for _ in range(60):
        sizes.append(budget.for_prefill(n_streams=n_decodes, n_decodes=n_decodes, n_prompts=1))
        step_s = base_s + token_s * (n_decodes + sizes[-1])
        budget.record(n_decodes=n_decodes, n_prefill=sizes[-1], step_s=step_s)
    return sizes


@pytest.mark.parametrize(
    ("base_s", "token_s", "expected"),
    [(0.02, 0.0005, 144), (0.0, 0.00001, 496), (0.2, 0.001, 8)],
)
def test_the_budget_settles_where_a_step_takes_the_target(
    base_s: float, token_s: float, expected: int
) -> None:
    budget = StepBudget(cost=StepCost(), max_tokens=512, target_itl_s=0.1, prefill_slowdown=None)
    sizes = settle(budget, n_decodes=16, base_s=base_s, token_s=token_s)
    assert abs(sizes[-1] - expected) <= 1
    assert all(8 <= size <= 496 for size in sizes)
    # It comes from one side: nothing swings over the target.
    assert max(sizes[:-1]) <= max(sizes[0], expected) + 1
    # With nobody to keep waiting the step is as full as a second allows.
    for _ in range(40):
        alone = budget.for_prefill(n_streams=0, n_decodes=0, n_prompts=1)
        budget.record(n_decodes=0, n_prefill=alone, step_s=base_s + token_s * alone)
    assert alone == 512


def test_no_step_takes_much_more_than_a_second() -> None:
    budget = StepBudget(cost=StepCost(), max_tokens=512, target_itl_s=None, prefill_slowdown=2.5)
    assert (
        budget.for_prefill(n_streams=0, n_decodes=0, n_prompts=1) == 64
    )  # nothing is known yet: a token may take long
    for _ in range(40):
        n_tokens = budget.for_prefill(n_streams=0, n_decodes=0, n_prompts=1)
        budget.record(n_decodes=0, n_prefill=n_tokens, step_s=0.005 * n_tokens)
    assert n_tokens == 200


@pytest.mark.parametrize(("target_itl_s", "expected"), [(None, 120), (0.07, 60), (9.0, 120)])
def test_the_target_may_be_relative_to_a_step_that_only_decodes(
    target_itl_s: float | None, expected: int
) -> None:
    budget = StepBudget(
        cost=StepCost(), max_tokens=512, target_itl_s=target_itl_s, prefill_slowdown=2.5
    )
    assert budget.for_prefill(n_streams=16, n_decodes=16, n_prompts=1) == 64  # nothing is known yet
    for _ in range(50):
        budget.record(n_decodes=16, n_prefill=0, step_s=0.04)
    sizes = settle(budget, n_decodes=16, base_s=0.032, token_s=0.0005)
    assert abs(sizes[-1] - expected) <= 8


def test_the_target_follows_what_decodes_take_while_prompts_go_on() -> None:
    budget = StepBudget(cost=StepCost(), max_tokens=512, target_itl_s=None, prefill_slowdown=2.0)
    decode_s = 0.01
    for _ in range(20):
        budget.record(n_decodes=16, n_prefill=0, step_s=decode_s)
    steps = []
    for _ in range(1000):  # contexts grow: a step of the same decodes takes three times as long
        decode_s += 0.02 / 1000
        n_prefill = budget.for_prefill(n_streams=16, n_decodes=16, n_prompts=1)
        steps.append((n_prefill, decode_s + 0.0005 * n_prefill))
        budget.record(n_decodes=16, n_prefill=n_prefill, step_s=steps[-1][1])
    n_without = sum(n_prefill == 0 for n_prefill, _ in steps)
    assert 1000 // 34 <= n_without <= 1000 // 32
    assert steps[-1][1] == pytest.approx(2.0 * decode_s, rel=0.15)


def test_without_a_target_every_step_may_be_full() -> None:
    budget = StepBudget(cost=StepCost(), max_tokens=512, target_itl_s=None, prefill_slowdown=None)
    assert set(settle(budget, n_decodes=16, base_s=9.0, token_s=9.0)) == {496}


@pytest.mark.parametrize(("n_prompts", "expected"), [(1, 144), (5, 144), (10, 319), (16, 496)])
def test_prompts_may_take_more_of_a_step_where_many_wait_for_a_first_token(
    n_prompts: int, expected: int
) -> None:
    budget = StepBudget(
        cost=StepCost(), max_tokens=512, target_itl_s=None, prefill_slowdown=1 + 7 / 3
    )
    for _ in range(60):
        budget.record(n_decodes=16, n_prefill=0, step_s=0.03)
        n_prefill = budget.for_prefill(n_streams=16, n_decodes=16, n_prompts=n_prompts)
        step_s = 0.02 + 0.0005 * (16 + n_prefill)
        budget.record(n_decodes=16, n_prefill=n_prefill, step_s=step_s)
    assert abs(n_prefill - expected) <= 8


def slowest_mixed_step_s(*, n_waiting: int, n_decodes: int, max_sequences: int) -> float:
    """Decode, then let long prompts come; 20 ms a step and 0.5 ms a token."""
    clock = Clock()
    scheduler = make_scheduler(
        n_blocks=4096,
        max_sequences=max_sequences,
        max_batched_tokens=512,
        prefill_slowdown=2.0,
        clock=clock,
    )

    def step() -> tuple[float, bool]:
        batch = scheduler.schedule()
        step_s = 0.02 + 0.0005 * batch.n_tokens
        clock.now_s += step_s
        scheduler.update(batch, token_ids=[(1,)] * len(batch.sampled))
        return step_s, any(row.n_new > 1 for row in batch.rows) and len(batch.rows) >= n_decodes

    for key in range(n_decodes):
        scheduler.add(make_sequence(key, prompt=(20, key), max_new_tokens=900, ignore_eos=True))
    for _ in range(40):
        step()
    for key in range(n_decodes, n_decodes + n_waiting):
        prompt = tuple(30 + (key * 31 + i) % 97 for i in range(2000))
        scheduler.add(make_sequence(key, prompt=prompt, max_new_tokens=900, ignore_eos=True))
    return max(step_s for step_s, is_mixed in (step() for _ in range(60)) if is_mixed)


def test_a_backlog_that_finds_no_place_makes_no_step_longer() -> None:
    alone_s = slowest_mixed_step_s(n_waiting=1, n_decodes=3, max_sequences=4)
    assert slowest_mixed_step_s(n_waiting=50, n_decodes=3, max_sequences=4) == alone_s
    # The same backlog that does find places may take more of a step.
    assert slowest_mixed_step_s(n_waiting=50, n_decodes=3, max_sequences=54) > 2 * alone_s
