"""Answers that obey: JSON objects, schemas, pydantic models."""

import json
from enum import Enum
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.clients.asking import Asker, ends_of, fields, texts_of

pytestmark = pytest.mark.e2e

ASK = "Describe a person as JSON."
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "description": "A person", "strict": True, "schema": PERSON},
}


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Pet(BaseModel):
    kind: Mood
    legs: int = Field(ge=0, le=8)


class Owner(BaseModel):
    """Strict in the client's own manner: every field required, no others."""

    name: str = Field(max_length=12)
    best: Pet
    others: list[Pet] = Field(max_length=2)
    note: str | None = Field(max_length=12)


def test_any_object(asker: Asker) -> None:
    """The model may fill an object as it likes, so its end is only sure when it is cut short."""
    answer = asker.chat(ASK, response_format={"type": "json_object"}, max_tokens=48)
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    (close,) = asker.token_ids("}")
    closed = asker.chat(
        ASK, response_format={"type": "json_object"}, logit_bias={str(close): 100}, max_tokens=40
    )
    assert json.loads(closed.choices[0].message.content or "") == {}
    assert closed.choices[0].finish_reason == "stop"


def test_text_is_the_default(asker: Asker) -> None:
    assert asker.text(ASK, response_format={"type": "text"}) == asker.text(ASK)


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema(asker: Asker, *, strict: bool | None) -> None:
    named = {"name": "person", "schema": PERSON, "strict": strict}
    chosen = {"type": "json_schema", "json_schema": named}
    answer = asker.chat(ASK, response_format=chosen, max_tokens=80, temperature=1, seed=1)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_a_schema_in_a_stream_and_for_several_answers(asker: Asker) -> None:
    how: dict[str, Any] = {
        "response_format": FORMAT,
        "max_tokens": 80,
        "temperature": 1.2,
        "seed": 2,
        "n": 3,
    }
    whole = asker.chat(ASK, **how)
    chunks = asker.chunks(ASK, **how)
    texts = texts_of(chunks)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert set(ends_of(chunks).values()) == {"stop"}
    for text in texts.values():
        jsonschema.validate(json.loads(text), PERSON)


def test_an_answer_that_is_cut_says_so(asker: Asker) -> None:
    answer = asker.chat(ASK, response_format=FORMAT, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        asker.client.chat.completions.parse(
            **fields(asker.model, ASK, max_tokens=3), response_format=Owner
        )


def test_a_bias_and_a_stop_string_do_not_break_the_schema(asker: Asker) -> None:
    """A bias only chooses among what the schema allows."""
    (other,) = asker.token_ids(" blue")
    answer = asker.chat(
        ASK, response_format=FORMAT, max_tokens=80, logit_bias={str(other): 100}, temperature=1
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)
    cut = asker.chat(ASK, response_format=FORMAT, max_tokens=80, stop='"age"')
    text = cut.choices[0].message.content or ""
    assert cut.choices[0].finish_reason == "stop"
    assert text.startswith('{"name"') and '"age"' not in text


def test_a_pydantic_model(asker: Asker) -> None:
    for parse in (asker.client.chat.completions.parse, asker.client.beta.chat.completions.parse):
        answer = parse(**fields(asker.model, ASK, max_tokens=160), response_format=Owner)
        owner = answer.choices[0].message.parsed
        assert isinstance(owner, Owner)
        assert isinstance(owner.best.kind, Mood)


def test_a_pydantic_model_in_a_stream(asker: Asker) -> None:
    asked = fields(asker.model, ASK, max_tokens=160)
    with asker.client.chat.completions.stream(**asked, response_format=Owner) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Owner)
    assert "content.done" in kinds


async def test_a_pydantic_model_asynchronously(
    async_client: openai.AsyncOpenAI, model: str
) -> None:
    answer = await async_client.chat.completions.parse(
        **fields(model, ASK, max_tokens=160), response_format=Owner
    )
    assert isinstance(answer.choices[0].message.parsed, Owner)


def test_unicode_comes_whole(asker: Asker) -> None:
    words = ["Zoë", "张伟", "👩‍👩‍👧"]
    schema = {"type": "array", "prefixItems": [{"const": word} for word in words], "minItems": 3}
    chosen = {
        "type": "json_schema",
        "json_schema": {"name": "names", "schema": {**schema, "items": False}},
    }
    chunks = asker.chunks(ASK, response_format=chosen, max_tokens=80)
    assert json.loads(texts_of(chunks)[0]) == words
