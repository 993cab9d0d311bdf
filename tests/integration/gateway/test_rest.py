"""The HTTP doors in this process, against a real engine."""

import json
import re
from collections.abc import Awaitable

import httpx
import openai
import pytest

from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.engines.models import EngineProcess
from apps.metering.models import UsageRecord
from tests.integration.gateway.conftest import ENGINE, MODEL, chat
from tests.processes import EngineRun
from tests.rows import all_of
from tests.waiting import wait_until, wait_until_async


async def ledger() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))


async def test_models_are_listed_and_shown(client: openai.AsyncOpenAI) -> None:
    listed = await client.models.list()
    assert [(card.id, card.object, card.owned_by) for card in listed.data] == [
        (MODEL, "model", "tiny")
    ]
    shown = await client.models.retrieve(MODEL)
    assert shown == listed.data[0]


async def test_chat_answers_whole(client: openai.AsyncOpenAI, engine_process: EngineRun) -> None:
    answer = await client.chat.completions.create(**chat())
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    # <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n, one token a byte or mark
    assert answer.usage.prompt_tokens == 1 + 5 + 5 + 1 + 1 + 1 + 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    [row] = await ledger()
    assert answer.system_fingerprint is not None
    computed = rf"fp_{row.model_version_id}_native_float32_none_(compiled-a(mx|vx.*)|reference)"
    assert re.fullmatch(computed, answer.system_fingerprint)
    assert row.request_id == answer.id
    assert (row.state, row.outcome, row.finish_reason) == ("settled", "completed", "length")
    assert (row.n_prompt_tokens, row.n_completion_tokens) == (answer.usage.prompt_tokens, 8)
    assert row.n_reserved_tokens == answer.usage.prompt_tokens + 8
    assert (row.door, row.endpoint, row.route_name) == ("rest", "chat.completions", MODEL)
    assert (row.engine_name, row.engine_epoch) == (ENGINE, 1)
    assert row.ttft_ms is not None and row.total_ms is not None
    assert 0 < row.ttft_ms <= row.total_ms


async def test_chat_streams_what_it_answers_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**chat())
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **chat(stream=True, stream_options={"include_usage": True})
        )
    ]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_stream_is_well_formed_on_the_wire(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events[0] == ": keep-alive"
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(each.removeprefix("data: ")) for each in events[1:-2]]
    assert response.headers["x-request-id"] == chunks[0]["id"]
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]


async def test_completions_take_text_and_token_ids(client: openai.AsyncOpenAI) -> None:
    by_text = await client.completions.create(model=MODEL, prompt="Hi", temperature=0)
    assert by_text.object == "text_completion"
    assert by_text.usage is not None
    assert (by_text.usage.prompt_tokens, by_text.usage.completion_tokens) == (2, 16)
    in_list = await client.completions.create(model=MODEL, prompt=["Hi"], temperature=0)
    assert in_list.choices == by_text.choices
    by_ids = await client.completions.create(model=MODEL, prompt=[10, 20, 30], temperature=0)
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == 3
    chunks = [
        chunk
        async for chunk in await client.completions.create(
            model=MODEL, prompt="Hi", temperature=0, stream=True
        )
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_text.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_seed_repeats_a_sampled_answer(client: openai.AsyncOpenAI) -> None:
    def body(seed: int) -> dict[str, object]:
        return chat(temperature=1.5, seed=seed, max_tokens=24)

    first = await client.chat.completions.create(**body(1))
    again = await client.chat.completions.create(**body(1))
    other = await client.chat.completions.create(**body(2))
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content


async def test_stop_string_ends_the_text(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**chat(max_tokens=32))
    text = whole.choices[0].message.content or ""
    stop = next(char for char in text[4:] if text.index(char) > 2 and char.isascii())
    cut = await client.chat.completions.create(**chat(max_tokens=32, stop=stop))
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


async def test_every_answer_carries_a_request_id(http: httpx.AsyncClient) -> None:
    for response in (
        await http.get("/v1/models"),
        await http.get("/v1/nothing"),
        await http.post("/v1/chat/completions", content=b"{"),
        await http.get("/v1/models", headers={"Authorization": ""}),
    ):
        assert response.headers["x-request-id"].startswith("req-")
        assert int(response.headers["openai-processing-ms"]) >= 0


async def test_engine_is_idle_after_all(engine_process: EngineRun) -> None:
    wait_until("the engine to be idle", engine_process.is_idle)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 200, response.text


async def test_readiness_names_what_is_missing(
    http: httpx.AsyncClient, engine_process: EngineRun
) -> None:
    def observed(**fields: object) -> None:
        EngineProcess.objects.update(**fields)
        change_stamp_bump("replicas")

    async def deployments() -> dict[str, str]:
        return (await http.get("/readyz")).json()["deployments"]

    gone = str(engine_process.socket_path) + ".gone"
    await database_hop(lambda: observed(socket_path=gone, epoch=2))
    await wait_until_async(
        "the news that nobody answers",
        lambda: _is(deployments(), {"tiny": "no engine answers"}),
    )
    await database_hop(lambda: observed(state="backing_off"))
    await wait_until_async(
        "the news that none is ready",
        lambda: _is(deployments(), {"tiny": "no engine is ready"}),
    )
    response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "status": "not ready",
        "process": "ok",
        "database": "ok",
        "deployments": {"tiny": "no engine is ready"},
    }


async def _is(found: Awaitable[object], expected: object) -> bool:
    return await found == expected
