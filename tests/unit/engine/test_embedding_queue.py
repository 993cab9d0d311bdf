"""Which texts a step reads: every one exactly once, in turns, with bounded padding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.errors import Overloaded
from engine_service.scheduling.embedding_queue import EmbeddingQueue, PendingInput


def make_queue(
    *, max_tokens: int = 64, max_inputs: int = 8, max_requests: int = 100
) -> EmbeddingQueue:
    return EmbeddingQueue(max_tokens=max_tokens, max_inputs=max_inputs, max_requests=max_requests)


@given(
    requests=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=20), max_size=12),
    removed=st.sets(st.integers(0, 11)),
    max_tokens=st.integers(1, 400),
    max_inputs=st.integers(1, 10),
)
def test_every_text_is_read_once_within_the_bounds(
    requests: list[list[int]], removed: set[int], max_tokens: int, max_inputs: int
) -> None:
    queue = make_queue(max_tokens=max_tokens, max_inputs=max_inputs)
    for key, lengths in enumerate(requests):
        queue.add(key, lengths)
    for key in removed:
        queue.remove(key)
    expected = {
        PendingInput(n_tokens, key, index)
        for key, lengths in enumerate(requests)
        if key not in removed
        for index, n_tokens in enumerate(lengths)
    }
    read: list[PendingInput] = []
    while batch := queue.next_batch():
        longest = batch[-1].n_tokens
        assert len(batch) <= max_inputs
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
        assert all(longest <= 2 * pending.n_tokens <= 2 * longest for pending in batch)
        read += batch
    assert len(read) == len(expected)
    assert set(read) == expected
    assert len(queue) == 0


@given(
    requests=st.lists(
        st.lists(st.integers(1, 200), min_size=1, max_size=20), min_size=1, max_size=12
    )
)
def test_every_request_has_a_turn_within_as_many_steps_as_there_are_requests(
    requests: list[list[int]],
) -> None:
    queue = make_queue()
    for key, lengths in enumerate(requests):
        queue.add(key, lengths)
    served: set[int] = set()
    for _ in requests:
        served |= {pending.key for pending in queue.next_batch()}
    assert served == set(range(len(requests)))


def test_a_short_text_is_not_held_back_by_a_request_of_many_long_ones() -> None:
    queue = make_queue(max_tokens=512)
    queue.add(0, [256] * 100)
    assert [pending.key for pending in queue.next_batch()] == [0, 0]
    queue.add(1, [5])
    batches = [queue.next_batch() for _ in range(2)]
    assert [PendingInput(5, 1, 0)] in batches


def test_texts_of_like_length_of_several_requests_share_a_step() -> None:
    queue = make_queue(max_tokens=100)
    queue.add(0, [20, 3])
    queue.add(1, [11, 10])
    queue.add(2, [9])
    assert queue.next_batch() == [(10, 1, 1), (11, 1, 0), (20, 0, 0)]
    assert queue.next_batch() == [(9, 2, 0)]
    assert queue.next_batch() == [(3, 0, 1)]


def test_too_many_requests_are_refused_and_removal_makes_room() -> None:
    queue = make_queue(max_requests=2)
    queue.add(0, [1, 2])
    queue.add(1, [1])
    with pytest.raises(Overloaded, match="2 embedding requests"):
        queue.add(2, [1])
    queue.remove(0)
    queue.remove(0)
    queue.add(2, [1])
    assert queue.next_batch() == [(1, 1, 0), (1, 2, 0)]
