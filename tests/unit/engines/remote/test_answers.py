"""What a remote server answers, what it is asked, and what is counted."""

import json
from typing import Any

import pytest

from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    OutputFormat,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolUse,
)
from apps.engines.exceptions import (
    EngineRequestError,
)
from apps.engines.remote.client import RemoteClient
from tests import remote
from tests.remote import DONE, KEY, Upstream, piece, streamed, usage, whole
from tests.unit.engines.remote.asking import HELLO, all_of, ask, text_of


async def test_a_stream_is_read_piece_by_piece(client: RemoteClient, upstream: Upstream) -> None:
    cached = {"prompt_tokens_details": {"cached_tokens": 5}}
    upstream.answer = streamed(
        b": comment\r\n\r\n", piece("Hel"), piece("lo"), piece(finish_reason="length"),
        usage(9, 2, **cached), DONE,
    )  # fmt: skip
    stream = await ask(client)
    await stream.begun()
    deltas = await all_of(stream)
    assert text_of(deltas) == "Hello"
    assert [delta.finish_reason for delta in deltas][-1] == "length"
    assert stream.result is not None
    assert stream.result.finish_reason == "length"
    assert (stream.result.n_prompt_tokens, stream.result.n_cached_tokens) == (9, 5)
    assert stream.n_completion_tokens == stream.result.n_completion_tokens == 2


async def test_events_cut_anywhere_are_whole_again(
    client: RemoteClient, upstream: Upstream
) -> None:
    body = piece("Hé") + piece("llo", finish_reason="stop") + usage(3, 2) + DONE
    upstream.answer = streamed(*(body[i : i + 1] for i in range(len(body))))
    stream = await ask(client)
    assert text_of(await all_of(stream)) == "Héllo"


async def test_what_servers_do_otherwise_is_understood(
    client: RemoteClient, upstream: Upstream
) -> None:
    """Empty pieces after the end, usage in every piece, names of tools again and again, no end."""
    call = {"function": {"name": "look", "arguments": "{"}}
    again = {"index": 0, "function": {"name": "look", "arguments": "}"}}
    upstream.answer = streamed(
        remote.event({"choices": [], "usage": None, "prompt_filter_results": []}),
        piece(role="assistant", tool_calls=[call]),
        piece(tool_calls=[again]),
        piece(finish_reason="tool_calls"),
        piece(),
        piece(finish_reason="tool_calls"),
        usage(9, 1),
        usage(9, 4),
    )
    stream = await ask(client)
    pieces = [each for delta in await all_of(stream) for each in delta.tool_calls]
    assert [each.name for each in pieces if each.name] == ["look"]
    assert "".join(each.arguments for each in pieces) == "{}"
    assert stream.result is not None
    assert (stream.result.n_completion_tokens, stream.result.finish_reason) == (4, "stop")


async def test_a_whole_answer(client: RemoteClient, upstream: Upstream) -> None:
    upstream.answer = whole("Hello", prompt_tokens=9, completion_tokens=2)
    stream = await ask(client, is_streamed=False)
    assert text_of(await all_of(stream)) == "Hello"
    assert stream.result is not None and stream.result.n_prompt_tokens == 9
    assert "stream" not in upstream.asked[0]


async def test_several_answers_reasoning_and_tools(
    client: RemoteClient, upstream: Upstream
) -> None:
    def choice(index: int, finish_reason: str | None = None, **delta: Any) -> bytes:
        choices = [{"index": index, "delta": delta, "finish_reason": finish_reason}]
        return remote.event({"choices": choices})

    call = {"index": 0, "id": "x", "function": {"name": "look", "arguments": ""}}
    upstream.answer = streamed(
        choice(1, reasoning_content="Hm. "),
        choice(0, content="A"),
        choice(1, tool_calls=[call]),
        choice(1, tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        choice(1, tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        choice(1, "tool_calls"),
        choice(0, "stop"),
        usage(9, 8),
        DONE,
    )
    stream = await ask(client, sampling=SamplingParams(n=2))
    deltas = await all_of(stream)
    assert text_of([delta for delta in deltas if delta.index == 0]) == "A"
    second = [delta for delta in deltas if delta.index == 1]
    assert "".join(delta.reasoning for delta in second) == "Hm. "
    pieces = [each for delta in second for each in delta.tool_calls]
    assert [each.name for each in pieces if each.name] == ["look"]
    assert "".join(each.arguments for each in pieces) == '{"a":1}'
    assert {delta.index: delta.finish_reason for delta in deltas} == {0: "stop", 1: "stop"}


async def test_logprobs_come_as_ours_do(client: RemoteClient, upstream: Upstream) -> None:
    top = [{"token": "A", "logprob": -0.5, "bytes": [65]}, {"token": "B", "logprob": -1.5}]
    token = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": top}
    body = {"index": 0, "delta": {"content": "A"}, "logprobs": {"content": [token]}}
    upstream.answer = streamed(
        remote.event({"choices": [body]}), piece(finish_reason="stop"), usage(3, 1), DONE
    )
    deltas = await all_of(await ask(client, sampling=SamplingParams(logprobs=2)))
    [found] = [each for delta in deltas for each in delta.logprobs]
    assert (found.token, found.logprob) == (b"A", -0.5)
    assert found.top == ((b"A", -0.5), (b"B", -1.5))
    assert upstream.asked[0] | {"logprobs": True, "top_logprobs": 2} == upstream.asked[0]


async def test_what_a_client_sent_goes_on_and_nothing_of_the_client(
    client: RemoteClient, upstream: Upstream
) -> None:
    upstream.answer = whole(prompt_tokens=1, completion_tokens=1)
    schema = '{"type":"object","properties":{"a":{"type":"integer"}}}'
    prompt = ChatPrompt(
        messages=(ChatMessage(role="system", content="S"), ChatMessage(role="user", content="U")),
        tool_use=ToolUse(
            tools=(Tool(name="look", description="d", parameters=schema),),
            only="look",
            parallel=False,
        ),
        thinking=False,
    )
    sampling = SamplingParams(
        temperature=0.5, top_p=0.9, seed=7, stop=("X",), frequency_penalty=0.1,
        logit_bias=((5, 1.5),), top_k=3,
    )  # fmt: skip
    wanted = OutputFormat(json_schema=schema)
    await all_of(
        await ask(client, prompt=prompt, sampling=sampling, is_streamed=False, output_format=wanted)
    )
    function = {"name": "look", "description": "d", "parameters": json.loads(schema)}
    assert upstream.asked == [
        {
            "model": "their-model",
            "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "parallel_tool_calls": False,
            "reasoning_effort": "none",
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "frequency_penalty": 0.1,
            "logit_bias": {"5": 1.5},
            "stop": ["X"],
            "seed": 7,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
            },
            "max_tokens": 100,
        }
    ]
    assert upstream.headers[0] == {
        "Host": f"127.0.0.1:{upstream.port}",
        "User-Agent": "nano-llm-engine",
        "Accept-Encoding": "identity",
        "Accept": "*/*",
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Content-Length": upstream.headers[0]["Content-Length"],
    }


async def test_a_length_is_named_where_the_client_or_a_budget_did(
    client: RemoteClient, upstream: Upstream
) -> None:
    upstream.answer = whole(prompt_tokens=1, completion_tokens=1)
    await all_of(await ask(client, max_tokens=None, is_streamed=False))
    await all_of(await ask(client, max_tokens=None, granted=7, is_streamed=False))
    await all_of(await ask(client, max_tokens=9, granted=7, is_streamed=False))
    assert [body.get("max_tokens") for body in upstream.asked] == [None, 7, 7]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"sampling": SamplingParams(n=0)}, "n"),
        ({"sampling": SamplingParams(n=17)}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"sampling": SamplingParams(prompt_logprobs=1)}, "echo"),
    ],
)
async def test_what_counting_depends_on_is_refused_here(
    client: RemoteClient, upstream: Upstream, changed: dict[str, Any], param: str
) -> None:
    with pytest.raises(EngineRequestError) as refused:
        await ask(client, **changed)
    assert refused.value.param == param
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ((12, 3), (12, 3)),
        ((0, 0), (0, 0)),
        ((10**9, 10**9), (85, 100)),  # never more than was reserved: 64 + 16 + 5, and 100
        ((-5, -7), (0, 0)),
    ],
)
async def test_usage_is_charged_within_what_was_reserved(
    client: RemoteClient, upstream: Upstream, said: tuple[int, int], counted: tuple[int, int]
) -> None:
    upstream.answer = streamed(piece("Hello", finish_reason="stop"), usage(*said), DONE)
    stream = await ask(client, prompt=ChatPrompt(messages=(ChatMessage(role="", content="Hello"),)))
    await all_of(stream)
    assert stream.result is not None
    assert (stream.result.n_prompt_tokens, stream.result.n_completion_tokens) == counted


async def test_without_usage_the_bound_and_what_came_are_charged(
    client: RemoteClient, upstream: Upstream
) -> None:
    upstream.answer = streamed(piece("a" * 90), piece("b", finish_reason="stop"), DONE)
    stream = await ask(client, prompt=TextPrompt(text="x" * 50))
    await all_of(stream)
    assert stream.result is not None
    assert stream.result.n_prompt_tokens == 58
    assert stream.result.n_completion_tokens == 31  # a third of 91 bytes


async def test_small_pieces_without_usage_count_one_each(
    client: RemoteClient, upstream: Upstream
) -> None:
    upstream.answer = streamed(*[piece("a")] * 9, piece("a", finish_reason="stop"), DONE)
    stream = await ask(client)
    assert sum(delta.n_tokens for delta in await all_of(stream)) == 10
    assert stream.n_completion_tokens == 10


async def test_bounds_hold_for_every_kind_of_prompt(client: RemoteClient) -> None:
    async def bound(prompt: Any) -> int:
        stream = client.prepare(
            request_id="b", prompt=prompt, sampling=SamplingParams(), max_tokens=None,
            cache_salt="", timeout_s=1, standing=Standing(), output_format=None, is_streamed=True,
        )  # fmt: skip
        prepared = await stream
        assert prepared.n_prompt_tokens + prepared.max_new_tokens == 4096
        return prepared.n_prompt_tokens

    assert await bound(TokenPrompt(token_ids=(1, 2, 3))) == 3
    assert await bound(TextPrompt(text="ü")) == 2 + 8
    assert await bound(TextPrompt(text="x" * 10_000)) == 4095
    tools = ToolUse(tools=(Tool(name="t", parameters="{}"),))
    assert await bound(ChatPrompt(messages=HELLO.messages, tool_use=tools)) > await bound(HELLO)
