"""Responses: input items to turns, refusals by name, and deltas to events."""

from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest
from openai.types.responses import ResponseUsage

from apps.core.exceptions import InvalidRequest, Unavailable
from apps.engines.client import ChatMessage, OutputFormat, Tool, ToolCall, ToolUse
from apps.engines.types import AnswerDelta, ToolCallDelta
from apps.gateway.decoding import decode
from apps.gateway.merging import Stream
from apps.gateway.responses_schemas import ResponsesBody, responses_request
from apps.gateway.rest import responses_wire as wire
from apps.gateway.rest.responses import ResponsesChunks
from apps.gateway.types import ResponsesRequest
from tests.unit.gateway.named_events import events_of, result

_decoder = msgspec.json.Decoder(ResponsesBody)
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "3"}
REASONING = {
    "type": "reasoning",
    "id": "rs",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
}


def body(**fields: Any) -> ResponsesBody:
    return decode(_decoder, msgspec.json.encode({"model": "m", "input": "Hi", **fields}))


def asked(**fields: Any) -> ResponsesRequest:
    return responses_request(body(**fields))


def turns(*items: Any) -> tuple[ChatMessage, ...]:
    return asked(input=list(items)).prompt.messages


def test_defaults() -> None:
    request = asked()
    assert request.prompt.messages == (ChatMessage(role="user", content="Hi"),)
    assert (request.endpoint, request.id_prefix) == ("responses", "resp")
    assert (request.max_tokens, request.max_tokens_param) == (None, "max_output_tokens")
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.n) == (1, 1, 1)
    assert not request.stream and request.output_format is None
    assert request.prompt.tool_use is None and request.prompt.thinking is None


def test_fields_reach_the_request() -> None:
    request = asked(
        instructions="Be brief.",
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        stream=True,
        reasoning={"effort": "low", "summary": "auto"},
        store=True,
        metadata={"a": "b"},
        user="u",
        truncation="disabled",
        background=False,
        include=["reasoning.encrypted_content"],
        client_metadata={"session": "s"},
    )
    assert request.prompt.messages[0] == ChatMessage(role="system", content="Be brief.")
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (5, 0, 0.5)
    assert request.stream and request.prompt.thinking is True


def test_items_of_one_answer_are_one_turn() -> None:
    answer = {
        "type": "message",
        "id": "msg",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "So", "annotations": []}],
    }
    again = {"role": "user", "content": [{"type": "input_text", "text": "And?"}]}
    assert turns({"role": "user", "content": "Q"}, REASONING, answer, CALL, OUTPUT, again) == (
        ChatMessage(role="user", content="Q"),
        ChatMessage(
            role="assistant",
            content="So",
            reasoning="hm",
            tool_calls=(ToolCall(id="c", name="f", arguments='{"a":1}'),),
        ),
        ChatMessage(role="tool", content="3", tool_call_id="c"),
        ChatMessage(role="user", content="And?"),
    )


def test_answers_in_a_row_are_turns_of_their_own() -> None:
    one = {"role": "assistant", "content": "a"}
    assert [turn.content for turn in turns(one, {**one, "content": "b"}, CALL, REASONING)] == [
        "a",
        "b",
    ]


def test_tools_and_formats() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    request = asked(
        tools=[tool],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "string"}}},
    )
    assert request.prompt.tool_use == ToolUse(
        tools=(Tool(name="f", parameters='{"type":"object"}', strict=True),),
        choice="required",
        only="f",
        parallel=False,
    )
    assert request.output_format == OutputFormat(
        json_schema='{"type":"string"}', param="text.format.schema"
    )
    bare = asked(text={"format": {"type": "json_object"}}).output_format
    assert bare == OutputFormat(param="text.format")
    assert asked(text={"format": {"type": "text"}}).output_format is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"input": []}, "input"),
        ({"input": [REASONING]}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a", "name": "x"}]}, "input[0].name"),
        ({"input": [{**CALL, "output": "a"}]}, "input[0].output"),
        ({"input": [{**OUTPUT, "call_id": ""}]}, "input[0].call_id"),
        ({"input": [{**REASONING, "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tool_calls": 2}, "max_tool_calls"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


@dataclass
class Origin:
    request_id: str = "resp-0a"
    model: str = "m"
    created: int = 7


def chunks() -> ResponsesChunks:
    stream = cast(Stream, Origin())
    return ResponsesChunks(stream, wire.begun(stream, body(max_output_tokens=9)))


def test_a_stream_in_its_order() -> None:
    telling = chunks()
    call = (ToolCallDelta(index=0, name="f"), ToolCallDelta(index=0, arguments="{}"))
    data = telling.start()
    data += telling.delta(AnswerDelta(reasoning="hm", n_tokens=2))
    data += telling.delta(AnswerDelta(text="So"))
    data += telling.delta(AnswerDelta(tool_calls=call))
    events = events_of(data + telling.end(result()))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    whole = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert whole["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert {item["status"] for item in done} == {"completed"}
    assert whole["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 11,
    }
    assert (whole["status"], whole["store"], whole["max_output_tokens"]) == ("completed", False, 9)


def test_a_cut_answer_is_incomplete() -> None:
    telling = chunks()
    data = telling.start() + telling.delta(AnswerDelta(text="a", finish_reason="length"))
    last = events_of(data + telling.end(result("length")))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_failure_before_anything_still_begins_the_stream() -> None:
    telling = chunks()
    telling.start()
    events = events_of(telling.error(Unavailable("Gone.")))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "failed",
    ]
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "Gone."}
    assert events[-1]["response"]["status"] == "failed"


def test_a_failure_after_a_part_ends_the_stream_once() -> None:
    telling = chunks()
    telling.start()
    telling.delta(AnswerDelta(text="a"))
    (event,) = events_of(telling.error(Unavailable()))
    assert event["type"] == "response.failed"
    assert event["response"]["output"][0]["content"][0]["text"] == "a"
    assert event["response"]["output"][0]["status"] == "incomplete"
    assert event["response"]["usage"] is None


def test_an_aborted_answer_is_not_called_completed() -> None:
    telling = chunks()
    data = telling.start() + telling.delta(AnswerDelta(text="a", finish_reason="abort"))
    events = events_of(data + telling.end(result("abort")))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["status"] == "cancelled"


def test_usage_is_what_the_official_client_declares() -> None:
    telling = chunks()
    data = telling.start() + telling.delta(AnswerDelta(text="a", finish_reason="stop"))
    events = events_of(data + telling.end(result()))
    usage = ResponseUsage.model_validate(events[-1]["response"]["usage"])
    assert usage.input_tokens_details.cached_tokens == 4
    assert usage.input_tokens_details.cache_write_tokens == 0
