"""The frontend on the real model's tokenizer and chat template."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.conversation.prompt_reader import PromptReader
from engine_service.detokenizer import Detokenizer
from engine_service.protocol import ChatMessage, ChatPrompt
from engine_service.tokenizer import load_tokenizer
from tests.models import smollm2_dir
from tests.unit.frontend.test_detokenizer import TEXTS, decode_in_runs, expected_cut, split
from tests.unit.frontend.tokenizers import special_ids


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(smollm2_dir())


@given(text=TEXTS, sizes=st.lists(st.integers(1, 12), max_size=10))
def test_any_split_of_any_text_gives_the_full_decode(
    tokenizer: Any, text: str, sizes: Sequence[int]
) -> None:
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    runs = split(ids, sizes)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert decode_in_runs(tokenizer.backend_tokenizer, runs) == whole


@given(ids=st.lists(st.integers(0, 49151), max_size=60))
def test_any_ids_give_the_full_decode(tokenizer: Any, ids: list[int]) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert decode_in_runs(tokenizer.backend_tokenizer, [[i] for i in ids]) == whole


@given(text=TEXTS, stop=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4))
def test_stop_strings_never_leak(tokenizer: Any, text: str, stop: list[str]) -> None:
    decoder = tokenizer.backend_tokenizer
    ids = decoder.encode(text, add_special_tokens=False).ids
    # Some control characters are not in this vocabulary: the text that comes back lacks them.
    expected, stopped = expected_cut(decoder.decode(ids), stop)
    detokenizer = Detokenizer(decoder, special_ids=special_ids(decoder), stop=stop)
    shown = ""
    for token_id in ids:
        shown += detokenizer.push([token_id])
        assert expected.startswith(shown)
    assert shown + detokenizer.finish() == expected
    assert detokenizer.stopped == stopped


def test_a_chat_has_the_ids_that_transformers_gives_it(tokenizer: Any) -> None:
    turns = [("system", "Be brief."), ("user", "What is 12 + 345? 👍"), ("assistant", "357")]
    turns.append(("user", "Thanks"))
    prompt = ChatPrompt(messages=tuple(ChatMessage(role=r, content=c) for r, c in turns))
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    token_ids, _, _ = PromptReader(tokenizer, max_model_len=2048).read(prompt)
    assert token_ids == tuple(expected)
