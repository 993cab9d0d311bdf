"""The client of a remote replica against a real server that answers well, badly, half or not."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

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
    EngineClientError,
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineRequestError,
    EngineUnresponsive,
)
from apps.engines.remote.client import RemoteClient
from apps.engines.stream import EngineStream
from apps.engines.types import AnswerDelta
from tests import remote
from tests.remote import DONE, KEY, Upstream, of_body, piece, streamed, target, usage, whole
from tests.waiting import wait_until_async

HELLO = ChatPrompt(messages=(ChatMessage(role="user", content="Hello"),))


@pytest.fixture(autouse=True)
def here_is_allowed(settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with remote.upstream() as run:
        yield run


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[RemoteClient]:
    client = RemoteClient(target(upstream.base_url))
    await client.connect()
    yield client
    await client.close()


async def ask(
    client: RemoteClient,
    *,
    prompt: Any = HELLO,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = 100,
    granted: int | None = None,
    is_streamed: bool = True,
    output_format: OutputFormat | None = None,
) -> EngineStream:
    prepared = await client.prepare(
        request_id="r",
        prompt=prompt,
        sampling=sampling or SamplingParams(),
        max_tokens=max_tokens,
        cache_salt="",
        timeout_s=1,
        standing=Standing(deadline_s=2.0),
        output_format=output_format,
        is_streamed=is_streamed,
    )
    return await client.start("r", granted or prepared.max_new_tokens)


async def all_of(stream: EngineStream) -> list[AnswerDelta]:
    async with asyncio.timeout(10):
        return [delta async for delta in stream]


def text_of(deltas: list[AnswerDelta]) -> str:
    return "".join(delta.text for delta in deltas)


# -- good answers ----------------------------------------------------------------------------------


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


# -- what is asked ---------------------------------------------------------------------------------


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


# -- counting --------------------------------------------------------------------------------------


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


# -- bad answers -----------------------------------------------------------------------------------

MANY_CALLS = [{"index": 0, "function": {"arguments": "{}"}}]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (of_body(b"{}", status=429, headers={"Retry-After": "7"}), EngineOverloaded),
        (of_body(b"{}", status=503), EngineOverloaded),
        (of_body(b"boom", status=500), EngineFault),
        (of_body(b"", status=502), EngineDead),
        (of_body(b"", status=504), EngineDead),
        (of_body(b'{"error":{"message":"bad key sk-"}}', status=401), EngineFault),
        (of_body(b"", status=404), EngineFault),
        (of_body(b"", status=204), EngineFault),
        (of_body(b"", status=302, headers={"Location": "http://127.0.0.1:1/"}), EngineFault),
        (of_body(b"", status=307, headers={"Location": "http://169.254.169.254/"}), EngineFault),
        (of_body(b"<html>"), EngineFault),
        (of_body(b"[" * 100_000), EngineFault),
        (of_body(b'{"choices": 7}'), EngineFault),
        (of_body(b'{"choices": []}'), EngineDead),
        (of_body(b"{}", headers={"Content-Encoding": "gzip"}), EngineFault),
        (streamed(piece("Hel"), cuts=True), EngineDead),
        (streamed(piece("Hel")), EngineDead),
        (streamed(piece("Hel"), DONE), EngineDead),
        (streamed(DONE), EngineDead),
        (streamed(), EngineDead),
        (streamed(b"data: {\n\n"), EngineFault),
        (streamed(b"data: " + b"x" * 1_100_000), EngineFault),
        (
            streamed(piece("Hel"), remote.event({"error": {"message": "out of memory"}})),
            EngineFault,
        ),
        (streamed(piece("a", finish_reason="stop"), piece("b"), DONE), EngineFault),
        (streamed(remote.event({"choices": [{"index": 3, "delta": {}}]})), EngineFault),
        (streamed(remote.event({"choices": [{"index": -1, "delta": {}}]})), EngineFault),
        (streamed(piece(tool_calls=MANY_CALLS)), EngineFault),
        (streamed(10.0), EngineUnresponsive),
        (streamed(piece("Hel"), 10.0), EngineUnresponsive),
        (remote.silent, EngineUnresponsive),
    ],
)
async def test_what_goes_wrong_there_is_one_error_here(
    client: RemoteClient, upstream: Upstream, answer: remote.Answer, error: type[Exception]
) -> None:
    upstream.answer = answer
    stream = await ask(client)
    with pytest.raises(EngineClientError) as failed:
        await all_of(stream)
    assert type(failed.value) is error
    assert KEY not in repr(failed.value)
    assert len(upstream.asked) == 1  # nothing was followed, nothing asked twice
    assert client._running == {}


async def test_the_time_to_try_again_is_told(client: RemoteClient, upstream: Upstream) -> None:
    for header, wait_s in (("7", 7.0), ("99999", 60.0), ("soon", 1.0), ("-1", 0.0)):
        upstream.answer = of_body(b"{}", status=429, headers={"Retry-After": header})
        with pytest.raises(EngineOverloaded) as refused:
            await (await ask(client)).begun()
        assert refused.value.retry_after_s == wait_s


async def test_a_refusal_is_the_clients_to_read(client: RemoteClient, upstream: Upstream) -> None:
    said = {
        "message": "temperature must be under 2",
        "param": "temperature",
        "code": "invalid_value",
    }
    upstream.answer = of_body(json.dumps({"error": said}).encode(), status=400)
    with pytest.raises(EngineRequestError, match="must be under 2") as refused:
        await (await ask(client)).begun()
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_value")


@pytest.mark.parametrize("secret", [KEY, "127.0.0.1", remote.MODEL, "a\nb"])
async def test_a_refusal_that_names_what_is_ours_is_reworded(
    client: RemoteClient, upstream: Upstream, secret: str
) -> None:
    said = {"message": f"no {secret} here", "param": "<b>", "code": "No Code!"}
    upstream.answer = of_body(json.dumps({"error": said}).encode(), status=422)
    with pytest.raises(EngineRequestError) as refused:
        await (await ask(client)).begun()
    assert str(refused.value) == "The model refused the request."
    assert (refused.value.param, refused.value.code) == (None, "invalid_request")


async def test_nobody_is_there(upstream: Upstream) -> None:
    client = RemoteClient(target("http://127.0.0.1:1/v1"))
    await client.connect()
    with pytest.raises(EngineDead):
        await (await ask(client)).begun()
    with pytest.raises(EngineDead):
        await client.look(timeout_s=1)
    await client.close()


# -- leaving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_ends_it_there_at_once(
    client: RemoteClient, upstream: Upstream, is_streamed: bool
) -> None:
    upstream.answer = streamed(piece("Hel"), 30.0) if is_streamed else remote.silent
    stream = await ask(client, is_streamed=is_streamed)
    if is_streamed:
        assert (await anext(stream)).text == "Hel"
    else:
        await wait_until_async("the request to come", lambda: _true(len(upstream.asked) == 1))
    await stream.abort()
    assert stream.result is not None and stream.result.finish_reason == "abort"
    assert stream.n_completion_tokens == (1 if is_streamed else 0)
    await wait_until_async(
        "the server to be left", lambda: _true(upstream.n_left == 1), timeout_s=1
    )


async def test_what_still_runs_at_the_end_is_told(client: RemoteClient, upstream: Upstream) -> None:
    upstream.answer = streamed(piece("Hel"), 30.0)
    stream = await ask(client)
    await anext(stream)
    await client.close()
    with pytest.raises(EngineDead):
        await all_of(stream)
    assert client.is_closed
    with pytest.raises(EngineDead):
        await client.look(timeout_s=1)


async def test_connections_are_kept_and_bounded(upstream: Upstream) -> None:
    ports: set[int] = set()
    n_now = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal n_now, most
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        n_now += 1
        most = max(most, n_now)
        await asyncio.sleep(0.05)
        n_now -= 1
        return await whole(prompt_tokens=1, completion_tokens=1)(request)

    upstream.answer = answer
    client = RemoteClient(target(upstream.base_url, max_concurrency=2))
    await client.connect()

    async def one() -> None:
        await all_of(await ask(client, is_streamed=False))

    for _ in range(3):
        await one()
    assert len(ports) == 1
    streams = []
    for n in range(4):
        await client.prepare(
            request_id=f"r{n}", prompt=HELLO, sampling=SamplingParams(), max_tokens=1,
            cache_salt="", timeout_s=1, standing=Standing(deadline_s=5), output_format=None,
            is_streamed=False,
        )  # fmt: skip
        streams.append(await client.start(f"r{n}", 1))
    await asyncio.sleep(0)
    with pytest.raises(EngineOverloaded):
        await one()
    for stream in streams:
        await all_of(stream)
    assert most == 2
    await client.close()


# -- where it connects -----------------------------------------------------------------------------


class Resolver(AbstractResolver):
    """A name server that is someone else's: it answers what it likes, each time anew."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        address = self.answers.pop(0)
        return [ResolveResult(hostname=host, host=address, port=port, family=2, proto=6, flags=0)]

    async def close(self) -> None:
        pass


async def test_a_name_that_moves_into_the_house_is_not_followed(
    upstream: Upstream, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First an address that is allowed, then, for a new connection, one that is not."""
    upstream.answer = whole(prompt_tokens=1, completion_tokens=1)
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.1/32"]
    url = f"http://models.example.com:{upstream.port}/v1"
    resolver = Resolver("127.0.0.1", "127.0.0.2", "169.254.169.254", "10.0.0.1")
    connector = aiohttp.TCPConnector.__init__
    monkeypatch.setattr(
        aiohttp.TCPConnector,
        "__init__",
        lambda self, **options: connector(
            self,
            **options | {"use_dns_cache": False, "force_close": True, "keepalive_timeout": None},
        ),
    )
    client = RemoteClient(target(url), resolver=resolver)
    await client.connect()
    assert text_of(await all_of(await ask(client, is_streamed=False))) == "Hello"
    for _ in range(3):
        with pytest.raises(EngineDead):
            await all_of(await ask(client, is_streamed=False))
    assert resolver.answers == []
    assert len(upstream.asked) == 1
    await client.close()


@pytest.mark.parametrize("listed", [[], ["10.0.0.0/8"]])
async def test_an_address_is_refused_when_it_is_no_longer_listed(
    upstream: Upstream, settings: Any, listed: list[str]
) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = listed
    with pytest.raises(EngineDead, match="refused"):
        await RemoteClient(target(upstream.base_url)).connect()
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    client = RemoteClient(target(upstream.base_url))
    await client.connect()
    settings.REMOTE_ALLOWED_NETWORKS = listed
    with pytest.raises(EngineDead, match="not a public address"):
        await client.look(timeout_s=1)
    assert upstream.headers == []
    await client.close()


async def test_certificates_are_checked(tmp_path: Path) -> None:
    """Another authority, and a certificate of another address, are no server of ours."""
    for address, error in (("127.0.0.1", None), ("127.0.0.2", EngineDead)):
        directory = tmp_path / address
        directory.mkdir()
        tls, authority = remote.certificates(directory, address=address)
        async with remote.upstream(tls) as run:
            for ca_file in ("", str(authority)):
                client = RemoteClient(target(run.base_url, ca_file=ca_file))
                await client.connect()
                if error is None and ca_file:
                    await client.look(timeout_s=2)
                else:
                    with pytest.raises(EngineDead, match="CERTIFICATE_VERIFY_FAILED"):
                        await client.look(timeout_s=2)
                await client.close()
            assert len(run.headers) == (1 if error is None else 0)


async def test_proxies_of_the_environment_are_not_asked(
    client: RemoteClient, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await client.look(timeout_s=2)


# -- the rest --------------------------------------------------------------------------------------


async def test_looking_says_what_is_wrong(client: RemoteClient, upstream: Upstream) -> None:
    await client.look(timeout_s=2)
    upstream.models = ("other", "another")
    with pytest.raises(EngineFault, match=r"no model 'their-model'; it has: another, other"):
        await client.look(timeout_s=2)


async def test_embeddings(upstream: Upstream) -> None:
    client = RemoteClient(target(upstream.base_url, task="embed"))
    await client.connect()
    data = [{"index": 1, "embedding": [0, 1.5]}, {"index": 0, "embedding": [2.0, -1]}]
    body = {"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    upstream.answer = of_body(json.dumps(body).encode())
    inputs = [TextPrompt(text="a"), TokenPrompt(token_ids=(1, 2))]
    measured = await client.measure_inputs(request_id="e", inputs=inputs, timeout_s=1)
    assert measured.n_tokens == (9, 2)
    found = await client.embed(request_id="e", inputs=measured.inputs, timeout_s=2)
    assert [struct.unpack("<2f", each) for each in found.vectors] == [(2.0, -1.0), (0.0, 1.5)]
    assert found.n_prompt_tokens == 4
    assert upstream.asked[0]["input"] == ["a", [1, 2]]
    for bad in (data[:1], [*data, data[0]], [data[0], {"index": 0, "embedding": [1]}], []):
        upstream.answer = of_body(json.dumps({"data": bad}).encode())
        with pytest.raises(EngineFault):
            await client.embed(request_id="e", inputs=inputs, timeout_s=2)
    with pytest.raises(EngineRequestError) as refused:
        await ask(client)
    assert (refused.value.code, refused.value.param) == ("unsupported_task", "model")
    await client.close()


async def test_what_only_an_engine_can_do_is_refused(client: RemoteClient) -> None:
    with pytest.raises(EngineRequestError, match="tokenizer"):
        await client.detokenize(request_id="d", token_ids=(1,), timeout_s=1)
    with pytest.raises(EngineRequestError, match="tokenizer"):
        await client.tokenize(
            request_id="t", prompt=HELLO, add_special_tokens=None, with_strings=False, timeout_s=1
        )
    with pytest.raises(EngineRequestError):
        await client.measure_inputs(request_id="m", inputs=[TextPrompt(text="a")], timeout_s=1)


async def test_a_key_that_cannot_be_read_is_said(upstream: Upstream) -> None:
    with pytest.raises(EngineDead, match="key"):
        await RemoteClient(target(upstream.base_url, key_sealed="nonsense")).connect()
    with pytest.raises(EngineDead, match="certificates"):
        await RemoteClient(target(upstream.base_url, ca_file="/nowhere.pem")).connect()


async def _true(value: bool) -> bool:
    return value
