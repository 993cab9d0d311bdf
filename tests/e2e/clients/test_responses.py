"""The Responses API through the official client: whole and streamed, tools, schemas, errors."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseStreamEvent
from pydantic import BaseModel, Field

from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

CAPITAL = "What is the capital of France?"
ZONE: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "pattern": "^UTC[+-][0-9]$"}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_time",
    "description": "Tell the time",
    "parameters": ZONE,
    "strict": True,
}
FORCED = {"type": "function", "name": "get_time"}


class City(BaseModel):
    name: str = Field(max_length=12)
    is_capital: bool


@pytest.fixture(scope="module")
def client(product: RunningProduct) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=product.base_url, api_key=product.api_token, max_retries=0, timeout=120
    ) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(product: RunningProduct) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=product.base_url, api_key=product.api_token, max_retries=0, timeout=120
    ) as client:
        yield client


def fields(product: RunningProduct, ask: Any = CAPITAL, **more: Any) -> dict[str, Any]:
    """Return arguments of ``responses.create``: short and greedy unless they say otherwise."""
    return {
        "model": product.model,
        "input": ask,
        "temperature": 0,
        "max_output_tokens": 80,
        **more,
    }


def call_of(response: Response) -> ResponseFunctionToolCall:
    (call,) = (item for item in response.output if item.type == "function_call")
    assert isinstance(call, ResponseFunctionToolCall)
    jsonschema.validate(json.loads(call.arguments), ZONE)
    return call


def test_a_question_is_answered(client: openai.OpenAI, product: RunningProduct) -> None:
    asked = fields(product, instructions="Answer in few words.", metadata={"a": "b"}, store=True)
    answer = client.responses.create(**asked)
    assert "Paris" in answer.output_text
    assert (answer.object, answer.status, answer.error) == ("response", "completed", None)
    assert answer.model == product.model and answer.id.startswith("resp-")
    (item,) = answer.output
    assert item.type == "message" and (item.role, item.status) == ("assistant", "completed")
    assert [part.type for part in item.content] == ["output_text"]
    assert answer.instructions == "Answer in few words."
    assert (answer.metadata, answer.store, answer.truncation) == ({"a": "b"}, False, "disabled")
    assert (answer.temperature, answer.max_output_tokens) == (0, 80)
    usage = answer.usage
    assert usage is not None and 0 < usage.output_tokens < 80
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    again = client.responses.create(**asked)
    assert again.usage is not None and again.output_text == answer.output_text
    assert again.usage.input_tokens_details.cached_tokens > 0


def test_it_is_what_a_chat_answers(client: openai.OpenAI, product: RunningProduct) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]},
        {"role": "user", "content": CAPITAL},
    ]
    chat = client.chat.completions.create(
        model=product.model,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": CAPITAL},
        ],
        temperature=0,
        max_tokens=24,
    )
    answer = client.responses.create(**fields(product, items, max_output_tokens=24))
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None and chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_tells_what_the_whole_says(client: openai.OpenAI, product: RunningProduct) -> None:
    whole = client.responses.create(**fields(product))
    stream: Any = client.responses.create(**fields(product), stream=True)
    events: list[ResponseStreamEvent] = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 10
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert text == whole.output_text == last.response.output_text
    assert last.response.usage is not None and whole.usage is not None
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_the_clients_own_accumulation(client: openai.OpenAI, product: RunningProduct) -> None:
    with client.responses.stream(**fields(product)) as stream:
        done = [event.text for event in stream if event.type == "response.output_text.done"]
        final = stream.get_final_response()
    assert done == [final.output_text] and "Paris" in final.output_text


def test_a_cut_answer_is_incomplete(client: openai.OpenAI, product: RunningProduct) -> None:
    asked = fields(product, "Tell me a story about the sea.", max_output_tokens=5)
    answer = client.responses.create(**asked)
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None and answer.usage.output_tokens == 5
    stream: Any = client.responses.create(**asked, stream=True)
    assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_forced_call_and_the_way_back(client: openai.OpenAI, product: RunningProduct) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "max_output_tokens": 80}
    first = client.responses.create(**fields(product, "Time?", tool_choice=FORCED, **asked))
    call = call_of(first)
    assert (call.name, call.status, first.status) == ("get_time", "completed", "completed")
    assert first.tools[0].type == "function" and first.tools[0].parameters == ZONE
    items: list[Any] = [
        {"role": "user", "content": "Time?"},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "It is 09:41."},
    ]
    second = client.responses.create(**fields(product, items, tool_choice="none", **asked))
    assert second.output_text
    items[-1] = {**items[-1], "output": "It is midnight, " * 9}
    other = client.responses.create(**fields(product, items, tool_choice="none", **asked))
    assert second.usage is not None and other.usage is not None
    assert other.usage.input_tokens > second.usage.input_tokens, "the output was not read"


def test_a_call_in_a_stream(client: openai.OpenAI, product: RunningProduct) -> None:
    asked = fields(product, "Time?", tools=[TOOL], tool_choice="required", max_output_tokens=80)
    asked["parallel_tool_calls"] = False
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    call = call_of(final)
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    (done,) = (e for e in events if e.type == "response.function_call_arguments.done")
    assert "".join(pieces) == done.arguments == call.arguments and len(pieces) > 1
    assert call.name == "get_time"
    assert events[-1].type == "response.completed"


def test_an_answer_that_obeys_a_schema(client: openai.OpenAI, product: RunningProduct) -> None:
    form = {"type": "json_schema", "name": "zone", "schema": ZONE, "strict": True}
    answer = client.responses.create(**fields(product, "Time?", text={"format": form}))
    jsonschema.validate(json.loads(answer.output_text), ZONE)
    parsed = client.responses.parse(**fields(product, "Paris", text_format=City))
    assert isinstance(parsed.output_parsed, City)


def test_an_agents_turn(client: openai.OpenAI, product: RunningProduct) -> None:
    """What coding agents send with each turn, and the turn before given back whole."""
    items: list[Any] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Time?"}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "It is 09:41."},
    ]
    asked = fields(
        product,
        items,
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="session",
        extra_body={"client_metadata": {"session": "s"}},
        max_output_tokens=8,
    )
    stream: Any = client.responses.create(**asked, stream=True)
    last = list(stream)[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert last.response.output and last.response.store is False


async def test_asynchronously(async_client: openai.AsyncOpenAI, product: RunningProduct) -> None:
    whole = await async_client.responses.create(**fields(product))
    async with async_client.responses.stream(**fields(product)) as stream:
        final = await stream.get_final_response()
    assert final.output_text == whole.output_text
    asked = fields(product, "Time?", tools=[TOOL], tool_choice=FORCED, max_output_tokens=80)
    assert call_of(await async_client.responses.create(**asked)).name == "get_time"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "word " * 20_000}, "input"),
        ({"tools": [{**TOOL, "parameters": {"type": "object", "not": {}}}]}, "tools[0].parameters"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format.schema",
        ),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_refusals(
    client: openai.OpenAI, product: RunningProduct, more: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**fields(product) | more, stream=stream)
        assert refused.value.param == param


def test_other_errors(client: openai.OpenAI, product: RunningProduct) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="nobody", input="Hi")
    assert missing.value.param == "model"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").responses.create(**fields(product))
    only_key = {"x-api-key": product.api_token}
    answer = httpx.post(f"{product.base_url}/responses", json=fields(product), headers=only_key)
    assert answer.status_code == 401, "the other API's header is not for this path"
