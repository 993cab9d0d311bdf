"""Tools through the official client: what may be called, what must be, and the way back."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field

from tests.e2e.clients.asking import Asker, ends_of, fields, texts_of

pytestmark = pytest.mark.e2e

ASK = "What is the weather in Paris?"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "pattern": "^UTC[+-][0-9]$"}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "get_time": TIME}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"To {name}", "parameters": schema},
    }
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "get_time"}}


def calls_of(answer: ChatCompletion) -> list[tuple[str, Any]]:
    """Return the names and arguments of the calls, which must obey their schemas."""
    (choice,) = answer.choices
    calls = choice.message.tool_calls or []
    found = []
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        found.append((call.function.name, arguments))
    assert len({call.id for call in calls}) == len(calls)
    return found


def test_a_call_that_must_be(asker: Asker) -> None:
    answer = asker.chat(
        ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=80
    )
    assert len(calls_of(answer)) == 1
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_the_call_that_was_named(asker: Asker) -> None:
    answer = asker.chat(ASK, tools=TOOLS, tool_choice=NAMED, max_tokens=80)
    ((name, arguments),) = calls_of(answer)
    assert name == "get_time" and set(arguments) == {"zone"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_none_is_none(asker: Asker) -> None:
    answer = asker.chat(ASK, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices == asker.chat(ASK, max_tokens=8).choices, "the model was told of tools"


def test_auto_leaves_it_to_the_model(asker: Asker) -> None:
    """A bias on the first piece of the mark of a call decides here for the model."""
    for choice in ({}, {"tool_choice": "auto"}):
        text = asker.chat("Say hello.", tools=TOOLS, max_tokens=8, **choice)
        assert text.choices[0].message.tool_calls is None and text.choices[0].message.content
    marks = asker.token_ids("<tool_call>")
    bias = {str(marks[0]): 100}
    called = asker.chat(ASK, tools=TOOLS, max_tokens=2, logit_bias=bias, parallel_tool_calls=False)
    assert "<tool_call>" not in (called.choices[0].message.content or "")


@pytest.mark.parametrize("seed", range(2))
def test_at_most_one_call_where_several_are_not_wanted(asker: Asker, seed: int) -> None:
    how: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 100}
    one = asker.chat(ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **how)
    assert len(calls_of(one)) == 1


def test_a_call_that_is_cut_says_so(asker: Asker) -> None:
    answer = asker.chat(ASK, tools=TOOLS, tool_choice="required", max_tokens=18)
    assert answer.choices[0].finish_reason == "length"


def gathered(chunks: list[ChatCompletionChunk]) -> list[dict[str, str]]:
    """Join the pieces of calls as clients do; how each piece must look is seen here."""
    calls: list[dict[str, str]] = []
    for chunk in chunks:
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or ():
                assert piece.function is not None
                if piece.index == len(calls):
                    assert piece.id and piece.type == "function" and piece.function.name
                    calls.append({"id": piece.id, "name": piece.function.name, "arguments": ""})
                else:
                    assert piece.index < len(calls)
                    assert piece.id is None and piece.type is None and piece.function.name is None
                calls[piece.index]["arguments"] += piece.function.arguments or ""
    return calls


def test_calls_in_a_stream(asker: Asker) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 80}
    chunks = asker.chunks(ASK, **asked)
    (call,) = gathered(chunks)
    assert call["name"] == "get_time"
    jsonschema.validate(json.loads(call["arguments"]), TIME)
    assert ends_of(chunks) == {0: "tool_calls"}
    assert texts_of(chunks) == {0: ""}
    n_pieces = sum(bool(c.delta.tool_calls) for chunk in chunks for c in chunk.choices)
    assert n_pieces > 2, "the arguments did not come in pieces"
    whole = asker.chat(ASK, **asked)
    assert [json.loads(call["arguments"])] == [arguments for _, arguments in calls_of(whole)]


@pytest.mark.parametrize("seed", range(2))
def test_several_calls_in_a_stream(asker: Asker, seed: int) -> None:
    how: dict[str, Any] = {"temperature": 1.2, "seed": seed, "max_tokens": 90}
    chunks = asker.chunks(ASK, tools=TOOLS, tool_choice="required", n=2, **how)
    for index in range(2):
        own = [chunk for chunk in chunks if any(choice.index == index for choice in chunk.choices)]
        calls = gathered(own)
        assert calls
        whole = calls if ends_of(own)[index] == "tool_calls" else calls[:-1]
        for call in whole:
            jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])


def test_a_whole_round_trip(asker: Asker) -> None:
    asked: list[dict[str, Any]] = [{"role": "user", "content": "What time is it in Tokyo?"}]
    first = asker.chat(asked, tools=TOOLS, tool_choice=NAMED, max_tokens=80)
    message = first.choices[0].message
    assert message.tool_calls is not None
    turns = [
        *asked,
        message.to_dict(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is 09:41."},
    ]
    second = asker.chat(turns, tools=TOOLS, tool_choice="none", max_tokens=30)
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content
    # The model reads what the tool said: another answer of the tool is another prompt.
    other = asker.chat(
        [*turns[:-1], {**turns[-1], "content": "It is midnight, said the clock."}],
        tools=TOOLS,
        tool_choice="none",
        max_tokens=1,
    )
    assert second.usage is not None and other.usage is not None
    assert other.usage.prompt_tokens != second.usage.prompt_tokens


def test_calls_of_a_stream_are_taken_back_with_their_index(asker: Asker) -> None:
    chunks = asker.chunks(ASK, tools=TOOLS, tool_choice=NAMED, max_tokens=80)
    (call,) = gathered(chunks)
    function = {"name": call["name"], "arguments": call["arguments"]}
    joined = {"index": 0, "id": call["id"], "type": "function", "function": function}
    answer = asker.chat(
        [
            {"role": "user", "content": ASK},
            {"role": "assistant", "content": "", "tool_calls": [joined]},
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "content": [{"type": "text", "text": "3"}],
            },
        ]
    )
    assert answer.choices[0].message.content


class GetTime(BaseModel):
    """Return the time."""

    hour: int = Field(ge=0, le=23)
    minute: int = Field(ge=0, le=59)


def test_tools_made_of_pydantic_models(asker: Asker) -> None:
    tools = [openai.pydantic_function_tool(GetTime)]
    answer = asker.client.chat.completions.parse(
        **fields(asker.model, ASK, max_tokens=80, tools=tools, tool_choice="required"),
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetTime)
    asked = fields(asker.model, ASK, max_tokens=80, tools=tools, tool_choice="required")
    with asker.client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetTime)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds


def test_a_tool_without_parameters(asker: Asker) -> None:
    bare = [{"type": "function", "function": {"name": "ping"}}]
    (close,) = asker.token_ids("}")
    answer = asker.chat(
        ASK,
        tools=bare,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
        logit_bias={str(close): 100},
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("ping", {})


def test_a_loose_tool_whose_schema_cannot_be_held_to_takes_any_object(asker: Asker) -> None:
    loose = {"name": "f", "parameters": {"type": "object", "not": {}}}
    answer = asker.chat(
        ASK, tools=[{"type": "function", "function": loose}], tool_choice="required", max_tokens=20
    )
    (call, *_) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "f"


async def test_a_call_asynchronously(async_client: openai.AsyncOpenAI, model: str) -> None:
    answer = await async_client.chat.completions.create(
        **fields(model, ASK, tools=TOOLS, tool_choice=NAMED, max_tokens=80)
    )
    ((name, _),) = calls_of(answer)
    assert name == "get_time"
