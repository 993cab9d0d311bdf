"""The Messages API through its official client: whole and streamed, tools, counts, errors."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest
import pytest_asyncio
from anthropic.types import Message, ToolUseBlock

from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

CAPITAL = "What is the capital of France?"
ZONE: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "pattern": "^UTC[+-][0-9]$"}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "get_time", "description": "Tell the time", "input_schema": ZONE}
FORCED = {"type": "tool", "name": "get_time"}


@pytest.fixture(scope="module")
def client(product: RunningProduct) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=product.origin, api_key=product.api_token, max_retries=0, timeout=120
    ) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(product: RunningProduct) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=product.origin, api_key=product.api_token, max_retries=0, timeout=120
    ) as client:
        yield client


def fields(product: RunningProduct, ask: Any = CAPITAL, **more: Any) -> dict[str, Any]:
    """Return arguments of ``messages.create``: short and greedy unless they say otherwise.

    Of sampling, the client's newest versions only know what goes into ``extra_body``.
    """
    messages = [{"role": "user", "content": ask}] if isinstance(ask, str) else ask
    extra = {"temperature": 0, **more.pop("extra_body", {})}
    return {
        "model": product.model,
        "messages": messages,
        "max_tokens": 80,
        "extra_body": extra,
        **more,
    }


def body_of(product: RunningProduct) -> dict[str, Any]:
    asked = fields(product, max_tokens=1)
    extra: dict[str, Any] = asked.pop("extra_body")
    return asked | extra


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def call_of(message: Message) -> ToolUseBlock:
    (call,) = (block for block in message.content if block.type == "tool_use")
    assert isinstance(call, ToolUseBlock)
    jsonschema.validate(call.input, ZONE)
    return call


def test_a_question_is_answered(client: anthropic.Anthropic, product: RunningProduct) -> None:
    asked = fields(product, system="Answer in few words.", metadata={"user_id": "u"})
    message = client.messages.create(**asked)
    assert "Paris" in text_of(message)
    assert (message.type, message.role, message.model) == ("message", "assistant", product.model)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg-") and message._request_id == message.id
    assert message.usage.input_tokens > 0 and 0 < message.usage.output_tokens < 80
    again = client.messages.create(**asked)
    n_read = again.usage.cache_read_input_tokens
    assert n_read is not None and n_read > 0
    counted = client.messages.count_tokens(
        model=product.model, messages=asked["messages"], system=asked["system"]
    )
    assert counted.input_tokens == again.usage.input_tokens + n_read


def test_a_token_in_either_header(product: RunningProduct) -> None:
    with anthropic.Anthropic(base_url=product.origin, auth_token=product.api_token) as client:
        assert client.messages.create(**fields(product, max_tokens=1)).content
    answer = httpx.post(
        f"{product.base_url}/messages",
        json=body_of(product),
        headers={"anthropic-version": "2023-06-01", "x-api-key": product.api_token},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def test_a_stream_tells_what_the_whole_says(
    client: anthropic.Anthropic, product: RunningProduct
) -> None:
    whole = client.messages.create(**fields(product))
    stream: Any = client.messages.create(**fields(product), stream=True)
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"} and len(kinds) > 8
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0].message.usage.input_tokens > 0
    assert events[-2].delta.stop_reason == whole.stop_reason == "end_turn"
    with client.messages.stream(**fields(product)) as told:
        text = "".join(told.text_stream)
        final = told.get_final_message()
    assert text == text_of(final) == text_of(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_how_an_answer_ends(client: anthropic.Anthropic, product: RunningProduct) -> None:
    story = "Tell me a story about the sea."
    cut = client.messages.create(**fields(product, story, max_tokens=5))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    whole = text_of(client.messages.create(**fields(product)))
    assert "Paris" in whole
    asked = fields(product, stop_sequences=["nowhere to be found", "Paris"])
    stopped = client.messages.create(**asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert text_of(stopped) == whole.partition("Paris")[0]
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "Paris")


def test_a_forced_call_and_the_way_back(
    client: anthropic.Anthropic, product: RunningProduct
) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "max_tokens": 80}
    first = client.messages.create(**fields(product, "Time?", tool_choice=FORCED, **asked))
    call = call_of(first)
    assert (call.name, first.stop_reason) == ("get_time", "tool_use")
    turns: list[Any] = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": first.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "09:41"}],
        },
    ]
    second = client.messages.create(**fields(product, turns, tool_choice={"type": "none"}, **asked))
    assert text_of(second)
    counted = client.messages.count_tokens(model=product.model, messages=turns, tools=[TOOL])
    assert counted.input_tokens > first.usage.input_tokens


def test_a_call_in_a_stream(client: anthropic.Anthropic, product: RunningProduct) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked = fields(product, "Time?", tools=[TOOL], tool_choice=choice, max_tokens=80)
    with client.messages.stream(**asked) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert call_of(final).name == "get_time"
    assert len([piece for piece in pieces if piece]) > 1
    assert final.stop_reason == "tool_use"


async def test_asynchronously(
    async_client: anthropic.AsyncAnthropic, product: RunningProduct
) -> None:
    whole = await async_client.messages.create(**fields(product))
    async with async_client.messages.stream(**fields(product)) as stream:
        final = await stream.get_final_message()
    assert text_of(final) == text_of(whole)
    asked = fields(product, "Time?", tools=[TOOL], tool_choice=FORCED, max_tokens=80)
    assert call_of(await async_client.messages.create(**asked)).name == "get_time"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"extra_body": {"temperature": 3}}, "temperature"),
        ({"extra_body": {"top_p": 0}}, "top_p"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{**TOOL, "strict": True, "input_schema": {"type": "object", "not": {}}}]},
            "tools[0].input_schema",
        ),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"mcp_servers": [{}]}}, "mcp_servers"),
    ],
)
def test_refusals(
    client: anthropic.Anthropic, product: RunningProduct, more: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(
                **fields(product, more.get("messages", CAPITAL)) | more, stream=stream
            )
        body: Any = refused.value.body
        assert body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error"
        assert body["error"]["param"] == param
        assert body["error"]["message"]


def test_other_errors(client: anthropic.Anthropic, product: RunningProduct) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**fields(product) | {"model": "nobody"})
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    for ask in (client.messages.create, client.messages.count_tokens):
        stranger: Any = getattr(client.with_options(api_key="wrong").messages, ask.__name__)
        body = fields(product)
        if ask.__name__ == "count_tokens":
            body = {"model": body["model"], "messages": body["messages"]}
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger(**body)
        said: Any = refused.value.body
        assert said["error"]["type"] == "authentication_error"
    bare = httpx.post(f"{product.base_url}/messages", json=body_of(product))
    assert bare.status_code == 401 and bare.json()["error"]["type"] == "authentication_error"
