"""Bodies: what is accepted, what is refused, and which field the refusal names."""

from typing import Any

import msgspec
import pytest

from apps.core.exceptions import InvalidRequest
from apps.engines.client import (
    ChatMessage,
    OutputFormat,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolUse,
)
from apps.gateway.chat_schemas import ChatBody, chat_request
from apps.gateway.decoding import decode
from apps.gateway.schemas import MAX_PROMPTS, CompletionBody, completion_requests
from apps.gateway.types import ChatRequest, CompletionRequest

_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return chat_request(decode(_chat, msgspec.json.encode(body)))


def completions(**fields: Any) -> tuple[CompletionRequest, ...]:
    body = {"model": "m", "prompt": "Hi", **fields}
    return completion_requests(decode(_completion, msgspec.json.encode(body)))


def completion(**fields: Any) -> CompletionRequest:
    (request,) = completions(**fields)
    return request


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


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
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "missing_required_parameter",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
        ({"model": 3}, "invalid_type", "model"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": 2**40}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_tokens"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"stop": [1]}, "invalid_type", "stop[0]"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "invalid_value", "top_logprobs"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"logit_bias": {"five": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"9" * 40: 1}}, "invalid_value", "logit_bias"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "code"}]}, "invalid_value", "tools[0].type"),
        ({"tools": [tool("no spaces")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "invalid_value", "tools"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "invalid_value", "tools"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [tool()], "tool_choice": tool("g")}, "invalid_value", "tool_choice"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        ({"n": True}, "invalid_type", "n"),
        ({"parallel_tool_calls": 1}, "invalid_type", "parallel_tool_calls"),
        ({"verbosity": True}, "unsupported_parameter", "verbosity"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
        ({"reasoning_effort": "wild"}, "invalid_value", "reasoning_effort"),
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
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "invalid_value", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt"),
        ({"prompt": [["a"]]}, "invalid_type", "prompt[0][0]"),
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": [1, 2**40]}, "invalid_value", "prompt[1]"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"best_of": True}, "unsupported_parameter", "best_of"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"messages": []}, "unknown_parameter", "messages"),
    ],
)
def test_completion_refusals(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_an_echo_brings_the_scores_of_the_prompt() -> None:
    echoed = completion(echo=True, logprobs=3)
    assert (echoed.sampling.logprobs, echoed.sampling.prompt_logprobs) == (3, 3)
    assert completion(logprobs=3).sampling.prompt_logprobs is None
    alone = completion(echo=True, max_tokens=0)
    assert (alone.is_echo_only, alone.max_tokens) == (True, 1)
    assert completion(max_tokens=0).max_tokens == 0


def test_tools_reach_the_prompt_with_their_schema_as_it_was_sent() -> None:
    schema = {"z": {}, "a": [1.0]}
    sent = tool("f", description="d", parameters=schema, strict=True)
    choose = {"type": "function", "function": {"name": "g"}}
    request = chat(tools=[sent, tool("g")], tool_choice=choose, parallel_tool_calls=False)
    assert request.prompt.tool_use == ToolUse(
        tools=(
            Tool(name="f", description="d", parameters='{"z":{},"a":[1.0]}', strict=True),
            Tool(name="g"),
        ),
        choice="required",
        only="g",
        parallel=False,
    )
    assert chat(tools=[sent]).prompt.tool_use.choice == "auto"
    assert chat(tools=[tool(parameters=None)]).prompt.tool_use.tools[0].parameters == ""


def test_a_conversation_with_calls() -> None:
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
    ]
    assert chat(messages=turns).prompt.messages == (
        ChatMessage(
            role="assistant",
            content="",
            tool_calls=(ToolCall(id="c", name="f", arguments="{}"),),
            reasoning="hm",
        ),
        ChatMessage(role="tool", content="7", tool_call_id="c"),
    )


def test_response_formats() -> None:
    assert chat(response_format={"type": "text"}).output_format is None
    assert chat(response_format={"type": "json_object"}).output_format == OutputFormat()
    wanted = {"name": "n", "schema": {"type": "string"}, "strict": True}
    assert chat(
        response_format={"type": "json_schema", "json_schema": wanted}
    ).output_format == OutputFormat(
        json_schema='{"type":"string"}', param="response_format.json_schema.schema"
    )


def test_reasoning_effort_turns_thinking_on_or_off() -> None:
    efforts = (None, "none", "minimal", "high")
    assert [chat(reasoning_effort=each).prompt.thinking for each in efforts] == [
        None,
        False,
        True,
        True,
    ]


def test_sampling_parameters_reach_the_request() -> None:
    sampling = chat(
        n=3,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"5": -1, "7": 2.5},
        stop_token_ids=[3],
        min_tokens=2,
        logprobs=True,
        top_logprobs=4,
    ).sampling
    assert (sampling.n, sampling.min_p, sampling.min_tokens) == (3, 0.1, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.repetition_penalty, sampling.stop_token_ids) == (1.5, (3,))
    assert sampling.logit_bias == ((5, -1.0), (7, 2.5))
    assert (sampling.logprobs, chat(logprobs=True).sampling.logprobs) == (4, 0)


def test_completion_prompts() -> None:
    assert completion().prompt == TextPrompt(text="Hi")
    assert completion(prompt=["Hi"]).prompt == TextPrompt(text="Hi")
    assert completion(prompt=[1, 2]).prompt == TokenPrompt(token_ids=(1, 2))
    assert [each.prompt for each in completions(prompt=["a", [1, 2]])] == [
        TextPrompt(text="a"),
        TokenPrompt(token_ids=(1, 2)),
    ]
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
        b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
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
