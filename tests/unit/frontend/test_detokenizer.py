from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine_service.detokenizer import Detokenizer, IncrementalDecoder, StopStrings
from tests.unit.frontend.tokenizers import END, byte_fallback, byte_level, special_ids

PIECES = ["👍🏽", "👨‍👩‍👧‍👦", "你好", "e\u0301", "été", " the", "STOP", "\ufffd", "\n", " ", "안녕"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=20).map("".join)


def split(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Cut ids into runs of these sizes, and single ids after them."""
    runs, start = [], 0
    for size in sizes:
        runs.append(ids[start : start + size])
        start += size
    return runs + [[token_id] for token_id in ids[start:]]


def decode_in_runs(tokenizer: Tokenizer, runs: Sequence[Sequence[int]]) -> str:
    detokenizer = Detokenizer(tokenizer, special_ids=special_ids(tokenizer))
    return "".join(detokenizer.push(run) for run in runs) + detokenizer.finish()


@given(TEXTS, st.lists(st.integers(1, 12), max_size=10))
def test_any_split_of_any_text_gives_the_full_decode(text: str, sizes: list[int]) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text).ids
    assert decode_in_runs(tokenizer, split(ids, sizes)) == tokenizer.decode(ids) == text


@given(
    st.lists(st.integers(0, byte_level().get_vocab_size() - 1), max_size=80),
    st.lists(st.integers(1, 40), max_size=6),
)
def test_ids_that_make_no_characters_give_the_full_decode(ids: list[int], sizes: list[int]) -> None:
    tokenizer = byte_level()
    assert decode_in_runs(tokenizer, split(ids, sizes)) == tokenizer.decode(ids)


@given(
    st.text(alphabet="abcdefgh 你好世界👍é", max_size=60), st.lists(st.integers(1, 9), max_size=6)
)
def test_byte_fallback_gives_the_full_decode(text: str, sizes: list[int]) -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text).ids
    assert decode_in_runs(tokenizer, split(ids, sizes)) == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("😀").ids
    assert len(ids) > 1
    decoder = IncrementalDecoder(tokenizer, special_ids=frozenset())
    assert [decoder.push(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["😀"]
    assert decoder.flush() == ""


def test_an_answer_that_ends_inside_a_character_shows_it_as_replaced() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀").ids[:-1]
    decoder = IncrementalDecoder(tokenizer, special_ids=frozenset())
    assert "".join(decoder.push(token_id) for token_id in ids) == "a"
    assert decoder.flush() == "\ufffd"


class CountingDecoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.n_decoded = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.n_decoded += len(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("text", ["the dog does not mind ", "你好 👍🏽 ", " " * 20])
def test_the_cost_of_a_token_does_not_grow_with_the_answer(text: str) -> None:
    counting = CountingDecoder(byte_level())
    ids = byte_level().encode(text * 200).ids
    decoder = IncrementalDecoder(counting, special_ids=frozenset())
    for token_id in ids:
        decoder.push(token_id)
    assert counting.n_decoded < 12 * len(ids)


def test_bytes_that_never_make_a_character_cost_no_more_and_come_out() -> None:
    counting = CountingDecoder(byte_level())
    invalid = byte_level().token_to_id("Ģ")  # the byte 0x80
    decoder = IncrementalDecoder(counting, special_ids=frozenset())
    text = "".join(decoder.push(invalid) for _ in range(2000))
    assert text + decoder.flush() == "\ufffd" * 2000
    assert len(text) > 1900
    assert counting.n_decoded < 40 * 2000


def expected_cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Character by character: the first completed wins, of several the one begun first."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stop if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)], True
    return text, False


STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=500)
@given(st.lists(st.text(alphabet="ab", max_size=4), max_size=12), STOPS)
def test_a_stop_string_never_leaks_however_the_text_is_split(
    pieces: list[str], stop: list[str]
) -> None:
    expected, stopped = expected_cut("".join(pieces), stop)
    strings = StopStrings(stop)
    shown, is_stopped = "", False
    for piece in pieces:
        found = strings.push(piece)
        shown += found.text
        assert expected.startswith(shown)
        if found.stop is not None:
            assert found.stop in stop
            is_stopped = True
            break
    assert is_stopped == stopped
    assert shown + strings.flush() == expected


def test_only_what_could_begin_a_stop_string_is_held_back() -> None:
    strings = StopStrings(["STOP"])
    assert strings.push("go on ST").text == "go on "
    assert strings.push("ART S").text == "START "
    assert strings.push("TOP more").text == ""
    strings = StopStrings(["STOP"])
    assert (strings.push("ends in ST").text, strings.flush()) == ("ends in ", "ST")


def test_tokens_are_counted_up_to_the_one_that_completes_the_stop_string() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("abc STOP def").ids
    n_expected = next(n for n in range(len(ids)) if "STOP" in tokenizer.decode(ids[:n]))
    detokenizer = Detokenizer(tokenizer, special_ids=special_ids(tokenizer), stop=[" STOP"])
    text = detokenizer.push(ids)
    assert (text, detokenizer.stopped, detokenizer.n_tokens) == ("abc", True, n_expected)
    assert detokenizer.stop == " STOP"
    assert detokenizer.finish() == ""


@given(TEXTS, st.sampled_from(PIECES), st.lists(st.integers(1, 6), max_size=6))
def test_stop_strings_through_a_tokenizer(text: str, stop: str, sizes: list[int]) -> None:
    tokenizer = byte_level()
    expected, stopped = expected_cut(text, [stop])
    detokenizer = Detokenizer(tokenizer, special_ids=special_ids(tokenizer), stop=[stop])
    shown = ""
    for run in split(tokenizer.encode(text).ids, sizes):
        shown += detokenizer.push(run)
        assert expected.startswith(shown)
    assert shown + detokenizer.finish() == expected
    assert detokenizer.stopped == stopped


def test_special_tokens_are_not_shown_but_counted() -> None:
    tokenizer = byte_level()
    end = tokenizer.token_to_id(END)
    detokenizer = Detokenizer(tokenizer, special_ids=special_ids(tokenizer))
    ids = [end, *tokenizer.encode("a b").ids, end]
    assert detokenizer.push(ids) + detokenizer.finish() == "a b"
    assert detokenizer.n_tokens == len(ids)
