"""Messages: content blocks to turns, refusals by name, and deltas to events."""

import json
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from apps.core.exceptions import (
    AppError,
    AuthenticationFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    Unavailable,
)
from apps.engines.client import ChatMessage, Tool, ToolCall, ToolUse
from apps.engines.types import AnswerDelta, ToolCallDelta
from apps.gateway.answer_parts import AnswerParts
from apps.gateway.decoding import decode
from apps.gateway.exceptions import RequestTimedOut
from apps.gateway.merging import Stream
from apps.gateway.messages_schemas import (
    CountBody,
    MessagesBody,
    counted_request,
    messages_request,
)
from apps.gateway.rest import messages_wire as wire
from apps.gateway.rest.messages import MessagesChunks
from apps.gateway.rest.wording import messages_error
from apps.gateway.types import MessagesRequest
from tests.unit.gateway.named_events import events_of, result

_decoder = msgspec.json.Decoder(MessagesBody)
_counted = msgspec.json.Decoder(CountBody)
USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "3"}


def text(what: str) -> dict[str, Any]:
    return {"type": "text", "text": what}


def asked(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 5, "messages": [USER], **fields}
    return messages_request(decode(_decoder, msgspec.json.encode(body)))


def test_defaults() -> None:
    request = asked()
    assert request.prompt.messages == (ChatMessage(role="user", content="Hi"),)
    assert (request.endpoint, request.id_prefix) == ("messages", "msg")
    assert (request.max_tokens, request.max_tokens_param) == (5, "max_tokens")
    assert not request.stream and request.prompt.thinking is None
    assert request.prompt.tool_use is None


def test_fields_reach_the_request() -> None:
    request = asked(
        system=[text("One."), {**text("Two."), "cache_control": {"type": "ephemeral"}}],
        temperature=0,
        top_p=0.5,
        top_k=7,
        stop_sequences=["a", "b"],
        stream=True,
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 2000},
    )
    assert request.prompt.messages[0] == ChatMessage(role="system", content="One.\nTwo.")
    assert (request.sampling.temperature, request.sampling.top_p) == (0, 0.5)
    assert (request.sampling.top_k, request.sampling.stop) == (7, ("a", "b"))
    assert request.stream and request.prompt.thinking is True
    assert asked(thinking={"type": "disabled"}).prompt.thinking is False
    assert asked(thinking={"type": "adaptive"}).prompt.thinking is None


def test_blocks_become_turns() -> None:
    made = [{"type": "thinking", "thinking": "hm", "signature": ""}, text("So"), USE]
    failed = {**RESULT, "content": [text("no"), text("way")], "is_error": True}
    request = asked(
        messages=[
            USER,
            {"role": "assistant", "content": made},
            {"role": "user", "content": [RESULT, failed, text("And"), text("now?")]},
        ]
    )
    assert request.prompt.messages[1:] == (
        ChatMessage(
            role="assistant",
            content="So",
            reasoning="hm",
            tool_calls=(ToolCall(id="c", name="f", arguments='{"a":1}'),),
        ),
        ChatMessage(role="tool", content="3", tool_call_id="c"),
        ChatMessage(role="tool", content="Error: no\nway", tool_call_id="c"),
        ChatMessage(role="user", content="And\nnow?"),
    )


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, {}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel": False}),
        ({"type": "any"}, {"choice": "required"}),
        ({"type": "tool", "name": "f"}, {"choice": "required", "only": "f"}),
        ({"type": "none"}, {"choice": "none"}),
    ],
)
def test_tools(choice: Any, wanted: dict[str, Any]) -> None:
    tool = Tool(name="f", description="d", parameters='{"type":"object"}')
    use = asked(tools=[TOOL], tool_choice=choice).prompt.tool_use
    assert use == ToolUse(tools=(tool,), **wanted)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": "So"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "content": [RESULT]}, USER]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"output_config": {"effort": "low"}}, "output_config"),
        ({"speed": "fast"}, "speed"),
        ({"metadata": {"x": 1}}, "metadata.x"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


def test_what_is_counted() -> None:
    body = {"model": "m", "messages": [USER, {"role": "assistant", "content": "So"}]}
    request = counted_request(decode(_counted, msgspec.json.encode({**body, "tools": [TOOL]})))
    assert [turn.role for turn in request.prompt.messages] == ["user", "assistant"]
    assert request.prompt.tool_use is not None
    with pytest.raises(InvalidRequest) as refused:
        decode(_counted, msgspec.json.encode({**body, "max_tokens": 5}))
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("No.", param="x"), "invalid_request_error"),
        (AuthenticationFailed(), "authentication_error"),
        (PermissionDenied(), "permission_error"),
        (NotFound(), "not_found_error"),
        (PayloadTooLarge(), "request_too_large"),
        (Overloaded(), "overloaded_error"),
        (Unavailable(), "api_error"),
        (RequestTimedOut(), "timeout_error"),
        (AppError(), "api_error"),
    ],
)
def test_error_names(error: AppError, kind: str) -> None:
    said = json.loads(msgspec.json.encode(messages_error(error)))
    wanted = {"type": kind, "message": error.message}
    if error.param is not None:
        wanted["param"] = error.param
    assert said == {"type": "error", "error": wanted}


@dataclass
class Origin:
    request_id: str = "msg-0a"


BEGUN = wire.begun(request_id="msg-0a", model="m", n_prompt_tokens=5)
CALLS = (ToolCallDelta(index=0, name="f"), ToolCallDelta(index=0, arguments='{"a":1}'))


def test_a_stream_in_its_order() -> None:
    telling = MessagesChunks(cast(Stream, Origin()), BEGUN)
    data = telling.start()
    data += telling.delta(AnswerDelta(reasoning="hm"))
    data += telling.delta(AnswerDelta(text="So", tool_calls=CALLS, finish_reason="stop"))
    events = events_of(data + telling.end(result()))
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("ping", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert [events[at]["content_block"]["type"] for at in (2, 5, 8)] == [
        "thinking",
        "text",
        "tool_use",
    ]
    assert events[8]["content_block"]["input"] == {}
    assert events[9]["delta"] == {"type": "input_json_delta", "partial_json": '{"a":1}'}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {
        "input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 6,
    }


def test_a_failure_is_an_event_and_the_end() -> None:
    telling = MessagesChunks(cast(Stream, Origin()), BEGUN)
    telling.start()
    (event,) = events_of(telling.error(Unavailable("Gone.")))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "Gone."}}


@pytest.mark.parametrize(
    ("delta", "reason", "stop"),
    [
        (AnswerDelta(text="a", finish_reason="stop"), "end_turn", None),
        (AnswerDelta(text="a", finish_reason="stop", stop="X"), "stop_sequence", "X"),
        (AnswerDelta(text="a", finish_reason="length"), "max_tokens", None),
        (AnswerDelta(tool_calls=CALLS, finish_reason="stop"), "tool_use", None),
        (AnswerDelta(tool_calls=CALLS[:1], finish_reason="length"), "max_tokens", None),
    ],
)
def test_how_an_answer_ended(delta: AnswerDelta, reason: str, stop: str | None) -> None:
    parts = AnswerParts("msg-0a")
    parts.add(delta)
    assert delta.finish_reason is not None
    parts.end(delta.finish_reason)
    whole = wire.ended(BEGUN, parts=parts, result=result(delta.finish_reason))
    said = json.loads(msgspec.json.encode(whole))
    assert (said["stop_reason"], said["stop_sequence"]) == (reason, stop)
    if delta.text:
        assert said["content"] == [{"type": "text", "text": "a"}]
    elif reason == "tool_use":
        (call,) = said["content"]
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "f", {"a": 1})
    else:
        assert said["content"] == [], "a call that was cut has no input that could be shown"
