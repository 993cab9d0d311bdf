"""Every body and every event of every door is what the official clients declare."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.pagination import SyncCursorPage, SyncPage
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from tests.e2e.clients.declared import check, events_of
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Name a city."}]
FUNCTION = {"name": "look_up", "description": "Look a city up", "parameters": SCHEMA}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
HELD = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": SCHEMA, "strict": True},
    }
}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut": {"max_tokens": 2},
    "several": {"n": 2, "seed": 1, "temperature": 1},
    "stopped": {"stop": ["a", "e"]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "held": HELD,
    "called": {**TOOLS, "tool_choice": "required"},
    "called in parallel": {**TOOLS, "tool_choice": "auto", "parallel_tool_calls": True},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Once"},
    "several prompts": {"prompt": ["Once", "There"], "n": 2},
    "token ids": {"prompt": [[1, 2, 3]], "echo": True},
    "logprobs": {"prompt": "Once", "logprobs": 2, "echo": True},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut": {"max_output_tokens": 16},
    "held": {"text": {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}},
    "called": {
        "tools": [{"type": "function", "strict": True, **FUNCTION}],
        "tool_choice": "required",
    },
}
MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {"system": "Be brief."},
    "cut": {"max_tokens": 2},
    "stopped": {"stop_sequences": ["a", "e"]},
    "called": {
        "tools": [{"name": "look_up", "description": "Look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
}
# Ours, and documented: reasoning is what several servers call it.
EXTRAS = frozenset({"reasoning", "reasoning_content"})
# Which the API documents, and the client does not declare.
STORE = frozenset({"store"})
PAGE = frozenset({"object", "first_id", "last_id"})


@pytest.fixture(scope="module")
def http(product: RunningProduct) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=product.base_url,
        headers={"Authorization": f"Bearer {product.api_token}"},
        timeout=120,
    ) as client:
        yield client


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str, http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 40, **CHATS[name]}
    check(post(http, "/chat/completions", body).json(), ChatCompletion, extras=EXTRAS)
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = events_of(post(http, "/chat/completions", streamed).text)
    assert done == "[DONE]" and len(chunks) > 2
    for chunk in chunks:
        check(chunk, ChatCompletionChunk, extras=EXTRAS)


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(name: str, http: httpx.Client, model: str) -> None:
    body = {"model": model, "temperature": 0, "max_tokens": 6, **COMPLETIONS[name]}
    check(_completion(post(http, "/completions", body).json()), Completion)
    *chunks, done = events_of(post(http, "/completions", {**body, "stream": True}).text)
    assert done == "[DONE]" and chunks
    for chunk in chunks:
        check(_completion(chunk), Completion)


def _completion(body: Any) -> Any:
    """Fill in what is null in the API and, by an oversight of this old type, not in the client: the
    reason before the end, and the logprobs of an echo's first token."""
    for choice in body["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        logprobs = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
        for values, filler in ((logprobs["token_logprobs"], 0.0), (logprobs["top_logprobs"], {})):
            values[:] = [filler if value is None else value for value in values]
    return body


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(name: str, http: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "input": "Name a city.",
        "temperature": 0,
        "max_output_tokens": 40,
        **RESPONSES[name],
    }
    check(post(http, "/responses", body).json(), Response, extras=STORE)
    events = events_of(post(http, "/responses", {**body, "stream": True}).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        check(event, ResponseStreamEvent, extras=STORE)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str, http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": ASK, "max_tokens": 40, "temperature": 0, **MESSAGES[name]}
    check(post(http, "/messages", body).json(), Message)
    events = events_of(post(http, "/messages", {**body, "stream": True}).text)
    # The client drops pings before it looks at types.
    assert events.pop(1) == {"type": "ping"}
    for event in events:
        check(event, RawMessageStreamEvent)
    counted = {"model": model, "messages": ASK}
    check(post(http, "/messages/count_tokens", counted).json(), MessageTokensCount)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(encoding: str, http: httpx.Client, product: RunningProduct) -> None:
    body = {"model": product.embedding_model, "input": ["a", "b"], "encoding_format": encoding}
    found = post(http, "/embeddings", body).json()
    if encoding == "base64":  # which the client unpacks before it looks at types
        for each in found["data"]:
            assert isinstance(each["embedding"], str)
            each["embedding"] = [0.0]
    check(found, CreateEmbeddingResponse)


def test_models(http: httpx.Client, model: str) -> None:
    extras = frozenset({"object", "max_model_len"})  # the latter as vLLM has it
    check(http.get("/models").json(), SyncPage[Model], extras=extras)
    check(http.get(f"/models/{model}").json(), Model, extras=extras)


def test_files_and_batches(http: httpx.Client, model: str) -> None:
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": ASK, "max_tokens": 1},
    }
    uploaded = http.post(
        "/files",
        files={"file": ("lines.jsonl", json.dumps(line).encode())},
        data={"purpose": "batch"},
    )
    file = uploaded.json()
    check(file, FileObject)
    check(http.get(f"/files/{file['id']}").json(), FileObject)
    check(http.get("/files").json(), SyncCursorPage[FileObject], extras=PAGE)
    asked = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = post(http, "/batches", asked).json()
    check(batch, Batch)
    check(http.get("/batches").json(), SyncCursorPage[Batch], extras=PAGE)
    check(http.post(f"/batches/{batch['id']}/cancel").json(), Batch)


def test_a_file_that_is_deleted(http: httpx.Client) -> None:
    uploaded = http.post(
        "/files", files={"file": ("lines.jsonl", b"{}")}, data={"purpose": "batch"}
    )
    check(http.delete(f"/files/{uploaded.json()['id']}").json(), FileDeleted)
