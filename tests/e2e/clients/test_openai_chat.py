"""Chats through the official client: every field that it has, and what answers say."""

import re
import uuid
from typing import Any

import openai
import pytest

from tests.e2e.clients.asking import Asker, ends_of, fields, texts_of
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

CAPITAL = "What is the capital of France?"
STORY = "Tell me a story about the sea."


def test_models(client: openai.OpenAI, model: str) -> None:
    listed = {card.id: card for card in client.models.list()}
    assert client.models.retrieve(model) == listed[model]
    assert listed[model].object == "model"


def test_a_question_is_answered(asker: Asker) -> None:
    answer = asker.chat(CAPITAL, max_tokens=40)
    (choice,) = answer.choices
    assert "Paris" in (choice.message.content or "")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert choice.message.tool_calls is None
    assert (answer.object, answer.model) == ("chat.completion", asker.model)
    assert answer.usage is not None
    n_prompt, n_answer = answer.usage.prompt_tokens, answer.usage.completion_tokens
    assert 0 < n_answer < 40 and answer.usage.total_tokens == n_prompt + n_answer


def test_parts_are_the_text_that_they_join_to(asker: Asker) -> None:
    parts = [{"type": "text", "text": "What is the "}, {"type": "text", "text": "capital?"}]
    in_parts = asker.chat([{"role": "user", "content": parts}])
    in_one = asker.chat("What is the capital?")
    assert in_parts.choices == in_one.choices
    assert in_parts.usage is not None and in_one.usage is not None
    assert in_parts.usage.prompt_tokens == in_one.usage.prompt_tokens


def test_roles(asker: Asker) -> None:
    def turns(role: str, **more: Any) -> list[dict[str, Any]]:
        return [
            {"role": role, "content": "Answer in one word."},
            {"role": "user", "content": "Hi", "name": "ada"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello."}], **more},
            {"role": "user", "content": CAPITAL},
        ]

    system, developer = asker.chat(turns("system")), asker.chat(turns("developer"))
    assert system.choices == developer.choices
    # What the client itself makes of an answer comes back with fields that say nothing.
    echoed = asker.chat(turns("system", refusal=None, annotations=[], audio=None, tool_calls=None))
    assert echoed.choices == system.choices
    without = asker.chat(turns("system")[1:])
    assert without.usage is not None and system.usage is not None
    assert without.usage.prompt_tokens != system.usage.prompt_tokens


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_is_kept_to(asker: Asker, name: str) -> None:
    answer = asker.chat(STORY, **{name: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_three_answers(asker: Asker) -> None:
    sampled: dict[str, Any] = {"n": 3, "temperature": 1.3, "seed": 11, "max_tokens": 10}
    answer = asker.chat(STORY, **sampled)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = {choice.index: choice.message.content or "" for choice in answer.choices}
    assert len(set(texts.values())) == 3
    assert answer.usage is not None and answer.usage.completion_tokens == 30
    again = asker.chat(STORY, **sampled)
    assert [c.message for c in again.choices] == [c.message for c in answer.choices]
    chunks = asker.chunks(STORY, **sampled)
    assert texts_of(chunks) == texts
    assert ends_of(chunks) == dict.fromkeys(range(3), "length")
    roles = [(c.index, c.delta.role) for chunk in chunks for c in chunk.choices if c.delta.role]
    assert roles == [(index, "assistant") for index in range(3)]
    alone = asker.text(STORY, **{**sampled, "n": 1})
    assert alone == texts[0]
    assert asker.text(STORY, **{**sampled, "n": 1, "seed": 12}) != alone


def test_greedy_is_the_same_each_time_and_however_it_is_asked_for(asker: Asker) -> None:
    greedy = asker.text(STORY, max_tokens=12)
    for how in ({}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        sampled = {"temperature": 1.7, "seed": 3} if how else {}
        assert asker.text(STORY, max_tokens=12, **sampled, **how) == greedy, how


def test_stop_strings(asker: Asker) -> None:
    whole = asker.text(STORY, max_tokens=16)
    words = whole.split()
    first, second = f" {words[3]}", f" {words[5]}"
    for stop in (first, [second, first]):
        cut = asker.chat(STORY, max_tokens=16, stop=stop)
        assert cut.choices[0].message.content == whole[: whole.index(first)]
        assert cut.choices[0].finish_reason == "stop"
        chunks = asker.chunks(STORY, max_tokens=16, stop=stop)
        assert texts_of(chunks) == {0: whole[: whole.index(first)]}
        assert ends_of(chunks) == {0: "stop"}
    assert asker.chat(STORY, max_tokens=16, stop="never said").choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 3.0}]
)
def test_penalties(asker: Asker, penalty: dict[str, float]) -> None:
    """Of words of equal bias, those already said become less likely: more of them are said."""
    words = [" red", " blue", " green", " black", " white", " brown", " pink", " gray"]
    bias = {str(token_id): 100 for word in words for token_id in asker.token_ids(word)}

    def n_different(**how: Any) -> int:
        answer = asker.chat(
            "Say a colour.", n=8, seed=7, temperature=1, max_tokens=8, logit_bias=bias, **how
        )
        return sum(len(set((c.message.content or "").split())) for c in answer.choices)

    assert n_different(**penalty) > n_different()


def test_a_bias_forces_a_token_and_bans_one(asker: Asker) -> None:
    (violet,) = asker.token_ids(" blue")
    forced = asker.chat(CAPITAL, max_tokens=1, logit_bias={str(violet): 100})
    assert forced.choices[0].message.content == " blue"
    greedy = asker.text(CAPITAL, max_tokens=1)
    (banned,) = asker.token_ids(greedy)
    assert asker.text(CAPITAL, max_tokens=1, logit_bias={str(banned): -100}) != greedy


def test_an_answer_of_nothing_stops(asker: Asker) -> None:
    """The end of a turn, forced as the first token, is counted and not shown."""
    (end,) = asker.token_ids("<|im_end|>")
    answer = asker.chat(CAPITAL, logit_bias={str(end): 100})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == 1


def test_a_stream_is_the_whole_answer_in_pieces(asker: Asker) -> None:
    whole = asker.chat(CAPITAL, max_tokens=40)
    chunks = asker.chunks(CAPITAL, max_tokens=40, stream_options={"include_usage": True})
    assert texts_of(chunks) == {0: whole.choices[0].message.content}
    assert ends_of(chunks) == {0: "stop"}
    assert sum(len(chunk.choices) > 0 for chunk in chunks) > 4, "not streamed"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert len({chunk.id for chunk in chunks}) == 1
    *before, last = chunks
    assert [chunk.usage for chunk in before] == [None] * len(before)
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens_details is not None
    assert all(chunk.usage is None for chunk in asker.chunks(CAPITAL))


def test_the_clients_own_gathering_of_a_stream(asker: Asker) -> None:
    with asker.client.chat.completions.stream(**fields(asker.model, CAPITAL)) as stream:
        kinds = [event.type for event in stream]
        gathered = stream.get_final_completion()
    assert gathered.choices[0].message.content == asker.text(CAPITAL)
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)


def test_cached_tokens_grow_on_a_repeated_prompt(asker: Asker) -> None:
    prompt = f"{uuid.uuid4()} " + "The sea was calm and the boat went on. " * 20

    def n_cached() -> int:
        usage = asker.chat(prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens > 160
        return usage.prompt_tokens_details.cached_tokens or 0

    first, second = n_cached(), n_cached()
    assert first < 64 and second >= 128


def test_what_is_accepted_without_effect(asker: Asker) -> None:
    answer = asker.chat(
        CAPITAL,
        user="ada",
        metadata={"trace": "1"},
        store=False,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        modalities=["text"],
    )
    assert answer.choices == asker.chat(CAPITAL).choices


def test_headers_and_fingerprint(asker: Asker, product: RunningProduct) -> None:
    raw = asker.client.chat.completions.with_raw_response.create(**fields(asker.model, CAPITAL))
    answer = raw.parse()
    assert raw.headers["x-request-id"] == answer.id == answer._request_id
    assert int(raw.headers["openai-processing-ms"]) > 0
    assert re.fullmatch(r"fp_[a-z0-9_-]+", answer.system_fingerprint or "")
    assert answer.system_fingerprint == asker.chat("Hi").system_fingerprint
    row = f"SELECT finish_reason FROM metering_usagerecord WHERE request_id = '{answer.id}'"
    assert product.rows(row) == [(answer.choices[0].finish_reason,)]
