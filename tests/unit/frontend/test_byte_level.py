"""Text by a table of tokens is what the tokenizer itself decodes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from engine_service.byte_level import ByteLevelDecoder, TokenTexts, byte_alphabet
from engine_service.detokenizer import Detokenizer
from tests.unit.frontend.tokenizers import byte_fallback, byte_level, special_ids


def table(tokenizer: Tokenizer) -> TokenTexts:
    found = TokenTexts.of(tokenizer, special_ids=special_ids(tokenizer))
    assert found is not None
    return found


def with_added_text() -> Tokenizer:
    """Added tokens stand for themselves, also where their characters are in the alphabet."""
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_tokens([AddedToken("你好"), AddedToken("<tool>"), AddedToken("naïve Ġ")])
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = ByteLevelDecoder(table(tokenizer))
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def test_the_alphabet_is_that_of_the_tokenizers() -> None:
    for char, byte in byte_alphabet().items():
        assert decoders.ByteLevel().decode([char]) == bytes([byte]).decode(errors="replace")


@settings(max_examples=300)
@given(st.data())
def test_any_ids_give_the_full_decode(data: st.DataObject) -> None:
    tokenizer = with_added_text()
    n_ids = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, n_ids - 1), max_size=60))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_are_replaced_as_the_tokenizer_does_it() -> None:
    """Overlong forms, surrogates, lone continuations and characters that break off."""
    tokenizer, rng = byte_level(), random.Random(3)
    ids = [tokenizer.token_to_id(char) for char in byte_alphabet()]
    lead = [tokenizer.token_to_id(c) for c, b in byte_alphabet().items() if b >= 0x80]
    for _ in range(3000):
        drawn = rng.choices(lead if rng.random() < 0.7 else ids, k=rng.randint(1, 9))
        assert "".join(pieces(tokenizer, drawn)) == tokenizer.decode(drawn)


def test_a_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("😀!").ids
    assert len(ids) > 2
    assert pieces(tokenizer, ids) == [""] * (len(ids) - 2) + ["😀", "!", ""]


def test_ids_beyond_the_vocabulary_and_special_ones_have_no_text() -> None:
    """Models have more logits than their tokenizer has tokens."""
    tokenizer = byte_level()
    ids = [*special_ids(tokenizer), tokenizer.get_vocab_size() + 7]
    assert pieces(tokenizer, ids) == [""] * (len(ids) + 1)


@pytest.mark.parametrize("stop", [(), ("STOP",)])
def test_a_generation_reads_the_same_with_and_without_the_table(stop: tuple[str, ...]) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("The 你好 👍🏽 is no ST, it is a STOP sign").ids
    texts = []
    for found in (table(tokenizer), None):
        detokenizer = Detokenizer(
            tokenizer, special_ids=special_ids(tokenizer), stop=stop, texts=found
        )
        said = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.finish()
        texts.append((said, detokenizer.stop, detokenizer.n_tokens))
    assert texts[0] == texts[1]


def test_other_tokenizers_have_no_table() -> None:
    assert TokenTexts.of(byte_fallback(), special_ids=()) is None
