"""A remote server that answers badly, half or not at all, and clients that leave."""

import asyncio
import json

import pytest
from aiohttp import web

from apps.engines.client import (
    SamplingParams,
    Standing,
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
from tests import remote
from tests.remote import DONE, KEY, Upstream, of_body, piece, streamed, target, whole
from tests.unit.engines.remote.asking import HELLO, all_of, ask
from tests.waiting import wait_until_async

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


async def _true(value: bool) -> bool:
    return value
