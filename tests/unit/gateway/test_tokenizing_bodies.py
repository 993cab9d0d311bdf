"""Bodies of ``/tokenize`` and ``/detokenize``: what is accepted, what field a refusal names."""

import json
from typing import Any

import msgspec
import pytest

from apps.core.exceptions import InvalidRequest
from apps.engines.client import ChatMessage, ChatPrompt, TextPrompt
from apps.gateway.decoding import decode
from apps.gateway.rest.tokenizing import DetokenizeBody, TokenizeBody, tokenize_request
from apps.gateway.tokenizing import TokenizeRequest

_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)
CHAT = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def request(**fields: Any) -> TokenizeRequest:
    return tokenize_request(decode(_tokenize, json.dumps({"model": "m", **fields})))


def test_a_prompt_or_a_chat() -> None:
    found = request(prompt="")
    assert (found.prompt, found.add_special_tokens) == (TextPrompt(text=""), None)
    assert not found.with_strings
    found = request(messages=CHAT, add_generation_prompt=True, return_token_strs=True)
    assert found.prompt == ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),))
    assert found.with_strings
    assert request(prompt="a", add_special_tokens=False).add_special_tokens is False


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": "a", "messages": CHAT}, "invalid_value", "prompt"),
        ({"prompt": ["a"]}, "invalid_type", "prompt"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": [{"role": "clown", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ({"prompt": "a", "add_special_tokens": 1}, "invalid_type", "add_special_tokens"),
        (
            {"prompt": "a", "add_generation_prompt": True},
            "unsupported_parameter",
            "add_generation_prompt",
        ),
        (
            {"messages": CHAT, "add_generation_prompt": False},
            "unsupported_parameter",
            "add_generation_prompt",
        ),
        ({"prompt": "a", "chat_template": "x"}, "unknown_parameter", "chat_template"),
    ],
)
def test_refusals_name_their_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "tokens"),
        ({"tokens": "a"}, "invalid_type", "tokens"),
        ({"tokens": [1, -1]}, "invalid_value", "tokens[1]"),
        ({"tokens": [1, 2**40]}, "invalid_value", "tokens[1]"),
        ({"tokens": [1], "skip_special_tokens": True}, "unknown_parameter", "skip_special_tokens"),
    ],
)
def test_refusals_of_token_ids(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(_detokenize, json.dumps({"model": "m", **fields}))
    assert (refused.value.code, refused.value.param) == (code, param)
