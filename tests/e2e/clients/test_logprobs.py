"""How likely each token was, as the official client reads it."""

import math

import pytest
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob

from tests.e2e.clients.asking import Asker, texts_of

pytestmark = pytest.mark.e2e

ASK = "What is the capital of France?"
END = "<|im_end|>"


def check(entries: list[ChatCompletionTokenLogprob], *, n_top: int) -> None:
    for entry in entries:
        assert entry.logprob <= 0
        assert entry.bytes is not None
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        assert len(entry.top_logprobs) == n_top
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-4


def test_greedy_takes_the_best(asker: Asker) -> None:
    answer = asker.chat(ASK, logprobs=True, top_logprobs=5)
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content
    check(entries, n_top=5)
    # The end of the turn is a token of the answer, and not of its text.
    assert "".join(e.token for e in entries).removesuffix(END) == choice.message.content
    assert answer.usage is not None and len(entries) == answer.usage.completion_tokens
    for entry in entries:
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob, best.bytes) == (entry.token, entry.logprob, entry.bytes)


def test_all_that_were_likely_are_told(asker: Asker) -> None:
    """The best twenty of a sure answer hold nearly all of the probability."""
    answer = asker.chat(ASK, logprobs=True, top_logprobs=20, max_tokens=4)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    check(entries, n_top=20)
    assert max(sum(math.exp(t.logprob) for t in entry.top_logprobs) for entry in entries) > 0.9


def test_without_any_beside_it(asker: Asker) -> None:
    for how in ({}, {"top_logprobs": 0}):
        answer = asker.chat(ASK, logprobs=True, **how)
        assert answer.choices[0].logprobs is not None
        check(answer.choices[0].logprobs.content or [], n_top=0)
    assert asker.chat(ASK, logprobs=False).choices[0].logprobs is None


def test_sampled_tokens_have_theirs(asker: Asker) -> None:
    """Each answer of several has its own, which do not depend on how they were sampled."""
    answer = asker.chat(ASK, logprobs=True, top_logprobs=2, n=2, temperature=1.5, seed=3)
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        check(choice.logprobs.content, n_top=2)
        joined = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
        assert joined.decode(errors="replace") == choice.message.content
    first = [choice.logprobs.content for choice in answer.choices if choice.logprobs is not None]
    tops = [
        [(t.token, round(t.logprob, 3)) for t in each[0].top_logprobs] for each in first if each
    ]
    assert tops[0] == tops[1], "both answers begin at the same place"


def test_a_stream_tells_the_same(asker: Asker) -> None:
    whole = asker.chat(ASK, logprobs=True, top_logprobs=3).choices[0]
    chunks = asker.chunks(ASK, logprobs=True, top_logprobs=3)
    entries = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or ()
    ]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert [e.token for e in entries] == [e.token for e in whole.logprobs.content]
    for got, wanted in zip(entries, whole.logprobs.content, strict=True):
        assert got.logprob == pytest.approx(wanted.logprob, abs=0.05)
    assert texts_of(chunks) == {0: whole.message.content}


def test_parts_of_characters_join(asker: Asker) -> None:
    """An emoji is several tokens; each has bytes of its own, and the text is whole."""
    schema = {"const": "👩‍👩‍👧"}
    chosen = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = asker.chat(ASK, response_format=chosen, logprobs=True, max_tokens=40)
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    joined = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert joined.decode().removesuffix(END) == choice.message.content == '"👩‍👩‍👧"'


@pytest.mark.parametrize("n_top", [-1, 21])
def test_too_many_are_refused(asker: Asker, n_top: int) -> None:
    error = asker.refusal(ASK, logprobs=True, top_logprobs=n_top)
    assert error.status_code == 400
    assert error.param == "top_logprobs"
