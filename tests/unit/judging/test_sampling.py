"""Which answers a judge takes, and what is kept of a text that is too long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.judging.sampling import (
    is_sampled,
    judged_text,
    text_sealed,
    text_shortened,
    text_unsealed,
)
from apps.judging.types import MAX_ANSWER_CHARS, MAX_ASKED_CHARS, MAX_TURNS, TURN_CHARS, Turn


@pytest.mark.parametrize("percent", [0.5, 10.0, 33.3, 90.0])
def test_the_share_is_as_stated(percent: float) -> None:
    n, share = 20_000, percent / 100
    found = sum(is_sampled(f"chatcmpl-{k:032x}", judge_id=3, percent=percent) for k in range(n))
    assert abs(found - n * share) <= 4.9 * math.sqrt(n * share * (1 - share))


def test_judges_draw_for_themselves() -> None:
    n = 20_000
    both = sum(
        all(is_sampled(f"req-{k}", judge_id=judge, percent=50.0) for judge in (1, 2))
        for k in range(n)
    )
    assert abs(both - n / 4) <= 4.9 * math.sqrt(n * 3 / 16)


@given(st.text(), st.integers(1, 2**40), st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_who_is_in_a_smaller_share_is_in_a_larger(
    request_id: str, judge_id: int, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    if is_sampled(request_id, judge_id=judge_id, percent=less):
        assert is_sampled(request_id, judge_id=judge_id, percent=more)
    assert is_sampled(request_id, judge_id=judge_id, percent=100.0)


TURNS = st.lists(st.builds(Turn, role=st.just("user"), content=st.text(max_size=80)), max_size=12)


@given(TURNS, st.text(max_size=200), st.integers(1, 300), st.integers(0, 120))
def test_the_end_of_what_was_asked_and_the_beginning_of_the_answer(
    turns: list[Turn], answer: str, max_asked: int, max_answer: int
) -> None:
    found = judged_text(turns, answer, max_asked=max_asked, max_answer=max_answer)
    assert found.answer == answer[:max_answer]
    assert sum(len(turn.content) for turn in found.asked) <= max_asked
    kept = len(found.asked)
    last = turns[len(turns) - kept :]
    assert list(found.asked[1:]) == last[1:]  # whole, all but the first of them
    assert all(
        had.content.endswith(got.content) for got, had in zip(found.asked, last, strict=True)
    )
    is_whole = list(found.asked) == turns and found.answer == answer
    assert found.is_cut is not is_whole


def test_bounds() -> None:
    long = judged_text([Turn("user", "x" * 20_000), Turn("user", "end")], "y" * 20_000)
    assert [len(turn.content) for turn in long.asked] == [MAX_ASKED_CHARS - 3 - TURN_CHARS, 3]
    assert (len(long.answer), long.is_cut) == (MAX_ANSWER_CHARS, True)
    exact = judged_text([Turn("user", "x" * MAX_ASKED_CHARS)], "y" * MAX_ANSWER_CHARS)
    assert not exact.is_cut


def test_empty_turns_take_room_too() -> None:
    found = judged_text([Turn("user", "")] * 100_000, "yes")
    assert (len(found.asked), found.is_cut) == (MAX_TURNS - 1, True)


@given(TURNS, st.text(max_size=400), st.floats(0.05, 0.9))
def test_shortened(turns: list[Turn], answer: str, share: float) -> None:
    text = judged_text(turns, answer)
    found = text_shortened(text, share=share)
    n_before = len(answer) + sum(len(turn.content) + TURN_CHARS for turn in text.asked)
    n_after = len(found.answer) + sum(len(turn.content) for turn in found.asked)
    assert n_after <= n_before * share
    assert answer.startswith(found.answer)
    # Half of the room at least is the answer's, where it needs that.
    assert len(found.answer) >= min(len(answer), int(n_before * share) // 2)


def test_a_short_answer_stays_whole() -> None:
    text = judged_text([Turn("user", "x" * 10_000)], "y" * 500)
    found = text_shortened(text, share=0.4)
    assert (found.answer, found.is_cut) == ("y" * 500, True)
    assert len(found.asked[0].content) == int(10_540 * 0.4) - 500


@given(TURNS, st.text(max_size=200))
def test_sealed_and_opened(turns: list[Turn], answer: str) -> None:
    text = judged_text(turns, answer)
    sealed = text_sealed(text)
    assert sealed.isascii()
    assert text_unsealed(sealed) == text
