"""Every schema of a corpus yields output that obeys it, from a small model at temperature 1; what
cannot be held to is refused by its name."""

import asyncio
import datetime
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jsonschema
import openai
import pytest

from tests.e2e.clients.asking import Asker

pytestmark = pytest.mark.e2e

CORPUS: Final[dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "schemas" / "corpus.json").read_text()
)
N_AT_ONCE: Final = 16
MAX_TOKENS: Final = 512
MAX_CUT_SHARE: Final = 0.02
PARAM: Final = "response_format.json_schema.schema"

FORMATS = jsonschema.FormatChecker(formats=("date", "email", "ipv4", "uuid"))


@FORMATS.checks("date-time", raises=ValueError)
def _is_moment(value: object) -> bool:
    return isinstance(value, str) and bool(
        datetime.datetime.fromisoformat(value.upper().replace(":60", ":59")).tzinfo
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    name: str
    seed: int
    text: str
    finish_reason: str
    n_tokens: int

    @property
    def fault(self) -> str | None:
        """What is wrong with an output that was not cut."""
        schema = CORPUS[self.name]
        try:
            value = json.loads(self.text)
            validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
            validator.validate(value)
        except (ValueError, jsonschema.ValidationError) as error:
            return f"{self.name}, seed {self.seed}: {str(error)[:200]}: {self.text[:200]}"
        return None


def test_the_corpus_is_what_it_should_be() -> None:
    assert len(CORPUS) >= 60
    for schema in CORPUS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = Counter(word for schema in CORPUS.values() for word in _keywords(schema))
    wanted = {
        *("$defs", "$ref", "additionalProperties", "allOf", "anyOf", "const", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength"),
        *("maximum", "minItems", "minLength", "minimum", "multipleOf", "oneOf", "pattern"),
        *("patternProperties", "prefixItems", "properties", "required", "type"),
    }
    assert wanted - set(used) == set()


def _keywords(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(word for inner in value.values() for word in _keywords(inner))]
    if isinstance(value, list):
        return [word for inner in value for word in _keywords(inner)]
    return []


@pytest.mark.parametrize(
    "n_seeds",
    [1, pytest.param(10, marks=(pytest.mark.prove, pytest.mark.timeout(3600)))],
)
async def test_every_schema_is_obeyed(
    async_client: openai.AsyncOpenAI, model: str, n_seeds: int
) -> None:
    gate = asyncio.Semaphore(N_AT_ONCE)

    async def one(name: str, seed: int) -> Output:
        async with gate:
            answer = await async_client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Write this as JSON: {name}."}],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "s", "strict": True, "schema": CORPUS[name]},
                },
                temperature=1,
                seed=seed,
                max_tokens=MAX_TOKENS,
                timeout=600,
            )
        assert answer.usage is not None
        return Output(
            name=name,
            seed=seed,
            text=answer.choices[0].message.content or "",
            finish_reason=answer.choices[0].finish_reason,
            n_tokens=answer.usage.completion_tokens,
        )

    asked = [one(name, seed) for seed in range(n_seeds) for name in CORPUS]
    outputs = await asyncio.gather(*asked)
    cut = [output for output in outputs if output.finish_reason == "length"]
    whole = [output for output in outputs if output.finish_reason == "stop"]
    faults = [output.fault for output in whole if output.fault]
    print(
        f"{len(CORPUS)} schemas, {n_seeds} seeds each: {len(outputs)} outputs of "
        f"{sum(output.n_tokens for output in outputs)} tokens; {len(whole) - len(faults)} obey, "
        f"{len(faults)} do not, {len(cut)} were cut at {MAX_TOKENS} tokens"
    )
    print("cut: " + (", ".join(f"{output.name} ({output.seed})" for output in cut) or "none"))
    assert faults == []
    assert len(cut) + len(whole) == len(outputs)
    assert len(cut) <= MAX_CUT_SHARE * len(outputs)


ANY = {"type": "object"}
UNSUPPORTED: Final[dict[str, dict[str, Any]]] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 3}},
    "then": {"then": {"maxLength": 3}},
    "else": {"else": {"maxLength": 3}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "minContains": {"type": "array", "minContains": 2},
    "maxContains": {"type": "array", "maxContains": 2},
    "dependentRequired": {**ANY, "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {**ANY, "dependentSchemas": {"a": ANY}},
    "dependencies": {**ANY, "dependencies": {"a": ["b"]}},
    "propertyNames": {**ANY, "propertyNames": {"pattern": "^a"}},
    "unevaluatedProperties": {**ANY, "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#node"},
    "$recursiveRef": {"$recursiveRef": "#"},
    # Where the keyword is known and what it asks for is not.
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "idn-email": {"type": "string", "format": "idn-email"},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "backreferences": {"type": "string", "pattern": "(a)\\1"},
    "/$defs/nowhere": {"$ref": "#/$defs/nowhere"},
    "example.org": {"$ref": "https://example.org/schema.json"},
    "unsatisfiable": {"type": "integer", "minimum": 5, "maximum": 1},
}


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_what_cannot_be_held_to_is_refused_by_name(asker: Asker, word: str) -> None:
    nested = {"type": "object", "properties": {"x": UNSUPPORTED[word]}, "required": ["x"]}
    for schema in (UNSUPPORTED[word], nested):
        if "$defs" in word and schema is nested:
            continue
        chosen = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        error = asker.refusal(response_format=chosen)
        assert (error.status_code, error.code) == (400, "unsupported_schema")
        assert error.param == PARAM
        # The reason, which the engine puts before the schema that it quotes.
        reason = error.message.partition("\n")[0].lower()
        reason += error.message.partition("error:")[2].lower()
        assert word.lower() in reason
