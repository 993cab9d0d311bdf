"""Bodies: what is accepted, what is refused, and which field the refusal names."""

from typing import Any

import msgspec
import pytest

from apps.core.exceptions import InvalidRequest
from apps.engines.client import ChatMessage, TextPrompt, TokenPrompt
from apps.gateway.decoding import decode
from apps.gateway.schemas import (
    ChatBody,
    CompletionBody,
    chat_request,
    completion_request,
)
from apps.gateway.types import ChatRequest, CompletionRequest

_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return chat_request(decode(_chat, msgspec.json.encode(body)))


def completion(**fields: Any) -> CompletionRequest:
    body = {"model": "m", "prompt": "Hi", **fields}
    return completion_request(decode(_completion, msgspec.json.encode(body)))


def test_chat_defaults() -> None:
    request = chat()
    assert request.prompt.messages == (ChatMessage(role="user", content="Hi"),)
    assert request.max_tokens is None
    assert (request.stream, request.include_usage) == (False, False)
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)
    assert (request.sampling.top_k, request.sampling.seed) == (0, None)
    assert request.sampling.stop == ()


def test_chat_fields_reach_the_request() -> None:
    request = chat(
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=7,
        seed=-3,
        stop=["a", "b"],
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert request.max_tokens == 5
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 7)
    assert (sampling.seed, sampling.stop, sampling.ignore_eos) == (-3, ("a", "b"), True)
    assert (request.stream, request.include_usage) == (True, True)


def test_one_stop_string() -> None:
    assert chat(stop="end").sampling.stop == ("end",)


def test_developer_is_system_and_parts_are_joined() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "name": "ann",
                "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}],
            },
        ]
    )
    assert request.prompt.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="a b", name="ann"),
    )


def test_an_echoed_answer_is_accepted() -> None:
    echoed = {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []}
    assert chat(messages=[echoed]).prompt.messages[0].content == "Hello"


def test_max_completion_tokens_names_itself() -> None:
    request = chat(max_completion_tokens=9)
    assert (request.max_tokens, request.max_tokens_param) == (9, "max_completion_tokens")
    assert chat(max_tokens=9, max_completion_tokens=9).max_tokens == 9


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": "Hi"}, "invalid_type", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "invalid_type",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "7"}]},
            "unsupported_parameter",
            "messages[0].tool_call_id",
        ),
        ({"model": 3}, "invalid_type", "model"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": 2**40}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_tokens"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"stop": [1]}, "invalid_type", "stop[0]"),
        ({"n": 2}, "unsupported_value", "n"),
        ({"n": 0}, "unsupported_value", "n"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"top_logprobs": 2}, "unsupported_parameter", "top_logprobs"),
        ({"presence_penalty": 0.1}, "unsupported_parameter", "presence_penalty"),
        ({"frequency_penalty": -1}, "unsupported_parameter", "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
        ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort"),
    ],
)
def test_chat_refusals(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"logit_bias": {}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"], "n": 1},
        {"tools": None, "logit_bias": None, "response_format": None, "stop": None},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_values_without_effect_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling == chat().sampling


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ["a", "b"]}, "unsupported_value", "prompt"),
        ({"prompt": ["a", 1]}, "unsupported_value", "prompt"),
        ({"prompt": [[1, 2]]}, "invalid_type", "prompt[0]"),
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": [1, 2**40]}, "invalid_value", "prompt[1]"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"logprobs": 0}, "unsupported_parameter", "logprobs"),
        ({"messages": []}, "unknown_parameter", "messages"),
    ],
)
def test_completion_refusals(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_completion_prompts() -> None:
    assert completion().prompt == TextPrompt(text="Hi")
    assert completion(prompt=["Hi"]).prompt == TextPrompt(text="Hi")
    assert completion(prompt=[1, 2]).prompt == TokenPrompt(token_ids=(1, 2))
    assert completion(prompt=[]).prompt == TokenPrompt(token_ids=())
    assert (completion().max_tokens, completion(max_tokens=3).max_tokens) == (16, 3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "m", "messages": []} x',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "cut", "trailing", "not utf-8", "half a pair", "nan", "deep"],
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(_chat, body)
    assert (refused.value.code, refused.value.param) == ("invalid_json", None)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"3"])
def test_what_is_not_an_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(_chat, body)
    assert (refused.value.code, refused.value.param) == ("invalid_type", None)


def test_an_error_does_not_echo_a_huge_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(_chat, b'{"%s": 1}' % (b"x" * 1_000_000))
    assert len(refused.value.message) < 200
