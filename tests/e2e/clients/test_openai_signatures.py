"""Every parameter that the installed official client has is decided here: honoured, accepted
without effect, or refused by its name. One that a later client brings fails until it is, too."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

DOCUMENT: Final = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
# These steer the client itself.
OF_THE_CLIENT: Final = {"extra_headers", "extra_query", "extra_body", "timeout"}
HI: Final = [{"role": "user", "content": "Hi"}]
TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# A value that must have a use; what it does is in the tests of its endpoint.
HONOURED: Final[dict[str, dict[str, Any]]] = {
    "chat": {
        "messages": HI,
        "model": None,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "max_completion_tokens": 2,
        "max_tokens": 2,
        "n": 2,
        "parallel_tool_calls": False,
        "presence_penalty": 0.5,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "seed": 1,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "tool_choice": "none",
        "tools": [TOOL],
        "top_logprobs": 1,
        "top_p": 0.5,
    },
    "completions": {
        "model": None,
        "prompt": "Hi",
        "echo": True,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": 1},
        "logprobs": 1,
        "max_tokens": 2,
        "n": 2,
        "presence_penalty": 0.5,
        "seed": 1,
        "stop": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.5,
    },
    "embeddings": {"model": None, "input": "Hi", "dimensions": 384, "encoding_format": "base64"},
}
# What a parameter is allowed beside only.
BESIDE: Final[dict[str, dict[str, Any]]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
}
WITHOUT_EFFECT: Final[dict[str, dict[str, Any]]] = {
    "chat": {
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": True,
        "user": "ada",
    },
    "completions": {"user": "ada"},
    "embeddings": {"user": "ada"},
}
REFUSED: Final[dict[str, dict[str, Any]]] = {
    "chat": {
        "audio": {"voice": "alloy", "format": "mp3"},
        "function_call": {"name": "f"},
        "functions": [{"name": "f"}],
        "modalities": ["text", "audio"],
        "moderation": {"model": "m"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "explicit"},
        "verbosity": "low",
        "web_search_options": {},
    },
    "completions": {"best_of": 2, "suffix": "the end"},
    "embeddings": {},
}
ENDPOINTS: Final = ("chat", "completions", "embeddings")


def method(client: openai.OpenAI, endpoint: str) -> Callable[..., Any]:
    resource = client.chat.completions if endpoint == "chat" else getattr(client, endpoint)
    create: Callable[..., Any] = resource.create
    return create


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - OF_THE_CLIENT


def needed(product: RunningProduct, endpoint: str) -> dict[str, Any]:
    """Return the least that a call needs."""
    if endpoint == "embeddings":
        return {"model": product.embedding_model, "input": "Hi"}
    prompt = {"messages": HI} if endpoint == "chat" else {"prompt": "Hi"}
    return {"model": product.model, "temperature": 0, "max_tokens": 2, **prompt}


def cases(table: dict[str, dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(endpoint, name, value, id=f"{endpoint}-{name}")
        for endpoint in ENDPOINTS
        for name, value in table[endpoint].items()
        if value is not None
    ]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_parameter_is_decided_once(client: openai.OpenAI, endpoint: str) -> None:
    tables = [table[endpoint] for table in (HONOURED, WITHOUT_EFFECT, REFUSED)]
    decided = [name for table in tables for name in table]
    assert sorted(decided) == sorted(parameters(method(client, endpoint)))


def test_of_the_models_too(client: openai.OpenAI, model: str) -> None:
    assert parameters(client.models.list) == set()
    assert parameters(client.models.retrieve) == parameters(client.models.delete) == {"model"}
    with pytest.raises(openai.APIStatusError) as refused:
        client.models.delete(model)
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")
    assert client.models.retrieve(model).id == model


@pytest.mark.parametrize(("endpoint", "name", "value"), [*cases(HONOURED), *cases(WITHOUT_EFFECT)])
def test_what_is_taken_is_documented(
    client: openai.OpenAI, product: RunningProduct, endpoint: str, name: str, value: Any
) -> None:
    given = {**needed(product, endpoint), **BESIDE.get(name, {}), name: value}
    if name == "max_completion_tokens":
        del given["max_tokens"]
    answer = method(client, endpoint)(**given)
    if given.get("stream"):
        assert list(answer)
    # In the first column of a table, where a reader looks for it.
    rows = [row.split("|")[1] for row in DOCUMENT.splitlines() if row.startswith("| `")]
    assert any(f"`{name}`" in row or f"`{name}." in row for row in rows), f"{name} in docs/api.md"


@pytest.mark.parametrize(("endpoint", "name", "value"), cases(REFUSED))
def test_what_is_not_built_is_refused_by_its_name(
    client: openai.OpenAI, product: RunningProduct, endpoint: str, name: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        method(client, endpoint)(**needed(product, endpoint), **{name: value})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
    assert f"`{name}`" in DOCUMENT


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_null_is_the_same_as_absent(
    client: openai.OpenAI, product: RunningProduct, endpoint: str
) -> None:
    least = needed(product, endpoint)
    nulls = dict.fromkeys(parameters(method(client, endpoint)) - set(least))
    path = "/chat/completions" if endpoint == "chat" else f"/{endpoint}"

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        found = client.post(path, body=body, cast_to=dict[str, Any])
        return {name: found[name] for name in ("choices", "data") if name in found}

    assert answer({**nulls, **least}) == answer(least)
