"""/v1/stream with the real model: what an answer may be, and coming back in the middle of one."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.clients.asking import Asker, Messages, ends_of, fields, texts_of
from tests.e2e.clients.test_structured import FORMAT, PERSON
from tests.e2e.clients.test_tools import ASK as ASK_TOOLS
from tests.e2e.clients.test_tools import SCHEMAS, TOOLS
from tests.integration.gateway.streams import closed_with, ends, receive, send, until
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

ASK = "What is the capital of France?"
STORY = "Tell me a long story about the sea."
Frames = list[dict[str, Any]]


@contextlib.asynccontextmanager
async def opened(
    product: RunningProduct, query: str = ""
) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """Yield a connection and its first frame; afterwards cut it, if it is not closed."""
    headers = {"Authorization": f"Bearer {product.api_token}"}
    async with connect(f"{product.ws_url}{query}", additional_headers=headers) as ws:
        yield ws, await receive(ws)
        ws.transport.abort()


def start(model: str, ask: Messages, client_id: str = "c1", **more: Any) -> dict[str, Any]:
    body = fields(model, ask, **more)
    return {"type": "start", "id": client_id, **body.pop("extra_body", {}), **body}


async def asked(product: RunningProduct, ask: Messages, **more: Any) -> Frames:
    """Return all frames of one request."""
    async with opened(product) as (ws, _):
        await send(ws, **start(product.model, ask, **more))
        frames = await until(ws, ends("c1"))
    assert frames[-1]["type"] == "finished", frames[-1]
    return frames


def text_of(frames: Frames, index: int = 0) -> str:
    deltas = [frame for frame in frames if frame["type"] == "delta"]
    return "".join(frame["text"] for frame in deltas if frame.get("index", 0) == index)


# -- answers -----------------------------------------------------------------------------------


async def test_tool_calls(product: RunningProduct) -> None:
    frames = await asked(product, ASK_TOOLS, tools=TOOLS, tool_choice="required", max_tokens=120)
    calls: dict[int, dict[str, str]] = {}
    for frame in frames:
        for piece in frame.get("tool_calls", ()):
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id") or ""
            call["name"] += piece["function"].get("name") or ""
            call["arguments"] += piece["function"]["arguments"]
    assert calls and frames[-1]["finish_reason"] == "tool_calls"
    assert len({call["id"] for call in calls.values()}) == len(calls)
    for call in calls.values():
        jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])
    assert text_of(frames) == ""


async def test_two_answers_with_a_seed(product: RunningProduct, asker: Asker) -> None:
    how = {"n": 2, "temperature": 1.2, "seed": 7, "max_tokens": 12}
    frames = await asked(product, ASK, **how)
    chunks = await asyncio.to_thread(asker.chunks, ASK, **how)
    assert {index: text_of(frames, index) for index in (0, 1)} == texts_of(chunks)
    assert text_of(frames, 0) != text_of(frames, 1)
    told = {f.get("index", 0): f["finish_reason"] for f in frames[:-1] if "finish_reason" in f}
    assert told == ends_of(chunks)


async def test_logprobs(product: RunningProduct, asker: Asker) -> None:
    how = {"logprobs": True, "top_logprobs": 3}
    frames = await asked(product, ASK, **how)
    whole = (await asyncio.to_thread(asker.chat, ASK, **how)).choices[0].logprobs
    assert whole is not None and whole.content is not None
    parts = [frame["logprobs"]["content"] for frame in frames if frame.get("logprobs")]
    entries = [entry for part in parts for entry in part]
    assert [entry["token"] for entry in entries] == [entry.token for entry in whole.content]
    for entry, other in zip(entries, whole.content, strict=True):
        assert entry["logprob"] == pytest.approx(other.logprob, abs=0.01)
        assert [t["token"] for t in entry["top_logprobs"]] == [t.token for t in other.top_logprobs]


async def test_an_answer_held_to_a_schema(product: RunningProduct) -> None:
    frames = await asked(product, "A person as JSON.", response_format=FORMAT, max_tokens=96)
    assert frames[-1]["finish_reason"] == "stop"
    jsonschema.validate(json.loads(text_of(frames)), PERSON)


async def test_wrong_fields_are_named_and_harm_no_other(product: RunningProduct) -> None:
    async with opened(product) as (ws, _):
        await send(ws, **start(product.model, ASK, "good", max_tokens=12))
        for wrong, param in (
            ({"temperature": 9}, "temperature"),
            ({"tools": [{"type": "function", "function": {"name": "no good"}}]}, "tools[0]"),
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"max_tokens": 1_000_000}, "max_tokens"),
        ):
            await send(ws, **start(product.model, ASK, "bad", **wrong))
            error = (await until(ws, ends("bad")))[-1]
            assert error["type"] == "error", wrong
            assert error["error"]["param"].startswith(param)
        await send(ws, **start(product.model, ASK, "good2", max_tokens=4))
        assert (await until(ws, ends("good2")))[-1]["type"] == "finished"


# -- many on one connection --------------------------------------------------------------------


async def test_sixteen_at_once_and_the_seventeenth_is_refused(product: RunningProduct) -> None:
    ids = [f"c{number}" for number in range(16)]
    async with opened(product) as (ws, _):
        for client_id in ids:
            await send(ws, **start(product.model, ASK, client_id, max_tokens=6, ignore_eos=True))
        await send(ws, **start(product.model, ASK, "c16"))
        await send(ws, type="ping", nonce="between")
        frames: Frames = []
        while sum(frame["type"] in {"finished", "error"} for frame in frames) < 17:
            frames.append(await receive(ws))
    assert {"type": "pong", "nonce": "between"} in frames
    (refused,) = [frame for frame in frames if frame["type"] == "error"]
    assert refused["id"] == "c16"
    assert refused["error"]["code"] == "too_many_requests_on_connection"
    finished = [frame for frame in frames if frame["type"] == "finished"]
    assert sorted(frame["id"] for frame in finished) == sorted(ids)
    assert {frame["usage"]["completion_tokens"] for frame in finished} == {6}
    for client_id in ids:
        own = [frame["type"] for frame in frames if frame.get("id") == client_id]
        assert own[0] == "started" and set(own[1:-1]) == {"delta"}


async def test_cancel_ends_one_of_two(product: RunningProduct) -> None:
    async with opened(product) as (ws, _):
        for client_id, n_tokens in (("long", 1000), ("short", 16)):
            body = start(product.model, STORY, client_id, max_tokens=n_tokens, ignore_eos=True)
            await send(ws, **body)
        await until(ws, lambda frame: frame["type"] == "delta" and frame["id"] == "long")
        await send(ws, type="cancel", id="long")
        frames: Frames = []
        while sum(frame["type"] == "finished" for frame in frames) < 2:
            frames.append(await receive(ws))
    ended = {frame["id"]: frame for frame in frames if frame["type"] == "finished"}
    assert ended["short"]["usage"]["completion_tokens"] == 16
    assert ended["long"]["finish_reason"] == "cancelled"
    assert 0 < ended["long"]["usage"]["completion_tokens"] < 1000


# -- coming back -------------------------------------------------------------------------------


async def cut(ws: ClientConnection, n_deltas: int) -> Frames:
    """Read so many deltas, then lose the connection as a network loses it."""
    frames: Frames = []
    while sum(frame["type"] == "delta" for frame in frames) < n_deltas:
        frames.append(await receive(ws))
    ws.transport.abort()
    return frames


@pytest.mark.parametrize("how", [{}, {"temperature": 1.2, "seed": 11}], ids=["greedy", "seed"])
async def test_an_answer_survives_two_lost_connections(
    product: RunningProduct, asker: Asker, how: dict[str, Any]
) -> None:
    how = {"max_tokens": 32, "ignore_eos": True, **how}
    whole = await asyncio.to_thread(asker.chat, STORY, **how)
    async with opened(product, "?resume=30") as (ws, ready):
        session = ready["session"]
        await send(ws, **start(product.model, STORY, **how))
        frames = await cut(ws, 5)
    # What came after the number that it remembers is lost to the client, and comes again.
    last = frames[-1]["event"] - 2
    del frames[last:]
    async with opened(product, f"?session={session}&last_event={last}") as (ws, _):
        frames += await cut(ws, 6)
    # Away until all is over, it still gets every word.
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    query = f"?session={session}&last_event={frames[-1]['event']}"
    async with opened(product, query) as (ws, again):
        assert again == ready
        frames += await until(ws, ends("c1"))
        await ws.close()
    assert [frame["event"] for frame in frames] == list(range(1, len(frames) + 1))
    assert text_of(frames) == whole.choices[0].message.content
    assert whole.usage is not None
    assert frames[-1]["usage"]["completion_tokens"] == whole.usage.completion_tokens == 32


async def test_another_connection_takes_over_in_the_middle(
    product: RunningProduct, asker: Asker
) -> None:
    how = {"max_tokens": 24, "ignore_eos": True}
    async with opened(product, "?resume=30") as (first, ready):
        await send(first, **start(product.model, STORY, **how))
        await until(first, lambda frame: frame["type"] == "delta")
        async with opened(product, f"?session={ready['session']}&last_event=0") as (second, _):
            assert await closed_with(first) == 4409
            frames = await until(second, ends("c1"))
            await second.close()
    assert [frame["event"] for frame in frames] == list(range(1, len(frames) + 1))
    whole = await asyncio.to_thread(asker.text, STORY, **how)
    assert text_of(frames) == whole


async def test_what_fell_out_of_the_window_is_told(product: RunningProduct) -> None:
    """Twenty likely tokens beside each make frames of some kilobytes."""
    how = {"n": 8, "max_tokens": 30, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    async with opened(product, "?resume=30") as (ws, ready):
        await send(ws, **start(product.model, STORY, **how))
        await until(ws, ends("c1"))
    for code, close_code in (("resume_window_exceeded", 4410), ("session_not_found", 4404)):
        query = f"?session={ready['session']}&last_event=1"
        async with opened(product, query) as (ws, error):
            assert (error["type"], error["error"]["code"]) == ("error", code)
            assert await closed_with(ws) == close_code


async def test_who_does_not_come_back_pays_for_what_was_made(product: RunningProduct) -> None:
    n_aborted = product.usage_outcomes()["aborted"]
    async with opened(product, "?resume=1") as (ws, _):
        await send(ws, **start(product.model, STORY, max_tokens=1500, ignore_eos=True))
        await cut(ws, 2)
    left_s = time.monotonic()
    assert product.n_open_usage_rows() == 1
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    assert time.monotonic() - left_s > 0.5
    assert product.usage_outcomes()["aborted"] == n_aborted + 1
    query = (
        "SELECT state, n_completion_tokens, n_reserved_tokens FROM metering_usagerecord"
        " ORDER BY id DESC LIMIT 1"
    )
    ((state, n_made, n_reserved),) = product.rows(query)
    assert state == "settled" and 2 < n_made < n_reserved

    async def is_idle() -> bool:
        stats = await product.engine_stats()
        return stats.n_running + stats.n_waiting == 0

    await wait_until_async("the engine to be idle", is_idle)
