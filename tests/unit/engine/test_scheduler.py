"""The scheduling policy, run with a stand-in for the model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.errors import Overloaded, RequestError
from engine_service.scheduling.sequence import Sequence
from tests.unit.engine.scheduling import (
    EOS,
    check_batch,
    make_scheduler,
    make_sequence,
    next_token,
    run_step,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 14),
            st.integers(1, 10),
            st.integers(0, 2),
            st.integers(0, 12),
            st.integers(0, 40),
        ),
        min_size=1,
        max_size=12,
    ),
    n_blocks=st.integers(6, 12),
    max_batched_tokens=st.integers(4, 20),
)
def test_every_request_ends_with_the_same_tokens_as_alone(
    requests: list[tuple[int, int, int, int, int]], n_blocks: int, max_batched_tokens: int
) -> None:
    scheduler = make_scheduler(n_blocks=n_blocks, max_batched_tokens=max_batched_tokens)
    sequences: dict[int, Sequence] = {}
    finished: dict[int, str] = {}
    aborted: set[int] = set()
    step = 0
    while step == 0 or scheduler.n_running or scheduler.n_waiting or len(sequences) < len(requests):
        for key, (n_prompt, n_new, prefix, arrival, abort_at) in enumerate(requests):
            if arrival == step:
                prompt = tuple((prefix + i) % EOS for i in range(n_prompt))
                sequences[key] = make_sequence(key, prompt=prompt, max_new_tokens=n_new)
                scheduler.add(sequences[key])
            elif abort_at == step and key in sequences and key not in finished:
                scheduler.remove(sequences[key])
                aborted.add(key)
        batch = scheduler.schedule()
        check_batch(batch, scheduler)
        assert batch.n_tokens <= max_batched_tokens
        assert batch.rows or not (scheduler.n_running or scheduler.n_waiting)
        assert scheduler.n_running <= 4
        token_ids = [[next_token(sequence.token_ids)] for sequence in batch.sampled]
        for advance in scheduler.update(batch, token_ids=token_ids):
            if advance.finish_reason is not None:
                assert advance.sequence.key not in finished
                finished[advance.sequence.key] = advance.finish_reason
        step += 1
        assert step < 1000, "the scheduler makes no progress"
    assert finished.keys() | aborted == set(range(len(requests)))
    assert scheduler.blocks.n_free == n_blocks
    for key, reason in finished.items():
        sequence = sequences[key]
        expected = list(sequence.token_ids[: sequence.n_prompt])
        while len(expected) < len(sequence):
            expected.append(next_token(expected))
        assert sequence.token_ids == expected
        assert reason == ("stop" if expected[-1] == EOS else "length")
        assert sequence.block_table == []


def test_a_step_mixes_decode_with_the_next_chunk_of_a_prompt() -> None:
    scheduler = make_scheduler(max_batched_tokens=6)
    scheduler.add(make_sequence(0, prompt=(1, 2)))
    scheduler.add(make_sequence(1, prompt=tuple(range(9))))
    assert run_step(scheduler) == [(0, 0, 2), (1, 0, 4)]
    assert run_step(scheduler) == [(0, 2, 1), (1, 4, 5)]
    assert run_step(scheduler) == [(0, 3, 1), (1, 9, 1)]


def test_the_latest_arrival_is_preempted_and_comes_back_first() -> None:
    scheduler = make_scheduler(n_blocks=4, block_size=2, max_batched_tokens=20, max_sequences=2)
    scheduler.add(make_sequence(0, prompt=(1, 2, 3)))
    scheduler.add(make_sequence(1, prompt=(4, 5, 6)))
    scheduler.add(make_sequence(2, prompt=(7,)))
    assert run_step(scheduler) == [(0, 0, 3), (1, 0, 3)]
    assert run_step(scheduler) == [(0, 3, 1), (1, 3, 1)]
    assert scheduler.n_preemptions == 0
    assert run_step(scheduler) == [(0, 4, 1)]
    assert (scheduler.n_preemptions, scheduler.n_waiting, scheduler.n_running) == (1, 2, 1)
    assert run_step(scheduler) == [(0, 5, 1)]  # its fourth token, the last
    # One of the two full blocks of sequence 1 was taken by sequence 0; the other is still known.
    assert run_step(scheduler) == [(1, 2, 3), (2, 0, 1)]


def test_a_shared_prefix_is_computed_once_and_salts_do_not_share() -> None:
    scheduler = make_scheduler(n_blocks=16, max_batched_tokens=64)
    prompt = (0, 1, 2, 3, 4, 5, 6, 7, 1)
    scheduler.add(make_sequence(0, prompt=prompt, salt="a"))
    assert run_step(scheduler) == [(0, 0, 9)]
    same = make_sequence(1, prompt=prompt, salt="a")
    other = make_sequence(2, prompt=prompt, salt="b")
    scheduler.add(same)
    scheduler.add(other)
    assert run_step(scheduler) == [(0, 9, 1), (1, 8, 1), (2, 0, 9)]
    assert (same.n_cached, other.n_cached) == (8, 0)
    assert same.block_table[:2] == scheduler.running[0].block_table[:2]
    assert (scheduler.n_prompt_tokens, scheduler.n_cached_tokens) == (27, 8)


def test_the_last_prompt_token_is_computed_even_if_its_block_is_known() -> None:
    scheduler = make_scheduler(n_blocks=16, max_batched_tokens=64)
    prompt = tuple(range(8))
    scheduler.add(make_sequence(0, prompt=prompt))
    run_step(scheduler)
    scheduler.add(make_sequence(1, prompt=prompt))
    assert run_step(scheduler) == [(0, 8, 1), (1, 4, 4)]


def test_answers_are_cached_for_the_next_turn() -> None:
    scheduler = make_scheduler(n_blocks=16, max_batched_tokens=64)
    scheduler.add(make_sequence(0, prompt=(5, 5, 5), max_new_tokens=6))
    while scheduler.n_running or scheduler.n_waiting:
        run_step(scheduler)
    scheduler.add(make_sequence(1, prompt=(5, 5, 5, 1, 1, 1, 1, 1, 1, 7)))
    assert run_step(scheduler) == [(1, 8, 2)]


def test_end_tokens_stop_unless_ignored() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, prompt=(1,), max_new_tokens=2))
    scheduler.add(make_sequence(1, prompt=(1,), max_new_tokens=2, ignore_eos=True))
    batch = scheduler.schedule()
    advances = scheduler.update(batch, token_ids=[[EOS], [EOS]])
    assert [advance.finish_reason for advance in advances] == ["stop", None]
    batch = scheduler.schedule()
    advances = scheduler.update(batch, token_ids=[[EOS]])
    assert [advance.finish_reason for advance in advances] == ["length"]


@pytest.mark.parametrize(("n_prompt", "n_new"), [(32, 1), (1, 32), (0, 1), (1, 0)])
def test_what_can_never_fit_is_refused(n_prompt: int, n_new: int) -> None:
    scheduler = make_scheduler()
    with pytest.raises(RequestError) as caught:
        scheduler.add(make_sequence(0, prompt=(1,) * n_prompt, max_new_tokens=n_new))
    assert caught.value.code == "context_length_exceeded"
    assert scheduler.n_waiting == 0


def test_a_full_queue_is_overloaded() -> None:
    scheduler = make_scheduler(max_waiting=1)
    scheduler.add(make_sequence(0, prompt=(1,)))
    with pytest.raises(Overloaded) as caught:
        scheduler.add(make_sequence(1, prompt=(1,)))
    assert caught.value.retry_after_s == 1.0
    assert scheduler.n_waiting == 1


def test_a_discarded_sequence_leaves_nothing_in_the_prefix_cache() -> None:
    scheduler = make_scheduler(n_blocks=16, max_batched_tokens=64)
    bad = make_sequence(0, prompt=tuple(range(9)))
    scheduler.add(bad)
    run_step(scheduler)
    batch = scheduler.schedule()
    assert len(scheduler.discard(bad)) == 3
    assert scheduler.update(batch, token_ids=[[1]]) == []
    assert (scheduler.blocks.n_free, scheduler.blocks.n_cached) == (16, 0)
