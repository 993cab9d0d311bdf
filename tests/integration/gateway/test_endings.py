"""How answers end and what they cost, whole and in pieces; what a client does by itself when told
to try again."""

import json
from typing import Any

import httpx
import openai
import pytest

from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.engines.models import EngineProcess
from apps.gateway.runtime import GatewayRuntime
from tests.integration.gateway.conftest import MODEL, chat
from tests.processes import CONTEXT_LENGTH
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"


async def streamed(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post(path, json=sent)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def ended(http: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the text and the end of each answer: the same whole and in pieces, ended once."""
    answer = (await http.post(CHAT, json=body)).json()
    whole = [(each["message"]["content"], each["finish_reason"]) for each in answer["choices"]]
    texts, ends = [""] * len(whole), [""] * len(whole)
    for chunk in await streamed(http, CHAT, body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            if reason := choice.get("finish_reason"):
                assert ends[choice["index"]] == ""
                ends[choice["index"]] = reason
    assert list(zip(texts, ends, strict=True)) == whole
    return whole


async def test_each_of_several_answers_ends_in_its_own_way(http: httpx.AsyncClient) -> None:
    body = chat(n=6, seed=2, temperature=1, max_tokens=24, ignore_eos=True)
    whole = [text for text, _ in await ended(http, body)]
    letters = {letter for text in whole for letter in text if letter.isascii() and letter.isalnum()}
    stop = next(each for each in sorted(letters) if 1 < sum(each in t for t in whole) < 6)
    assert await ended(http, {**body, "stop": stop}) == [
        (text.partition(stop)[0], "stop" if stop in text else "length") for text in whole
    ]


async def test_a_full_context_is_a_length(http: httpx.AsyncClient) -> None:
    body = chat("x" * (CONTEXT_LENGTH - 64), max_tokens=None, ignore_eos=True)
    ((_, reason),) = await ended(http, body)
    assert reason == "length"
    usage = (await http.post(CHAT, json=body)).json()["usage"]
    assert usage["total_tokens"] == CONTEXT_LENGTH
    assert usage["prompt_tokens_details"]["cached_tokens"] > CONTEXT_LENGTH / 2


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "You", "There"]], ids=["one", "three"])
async def test_usage_says_what_was_cached(http: httpx.AsyncClient, prompt: Any) -> None:
    ask = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    for path, body in (("/v1/completions", ask), (CHAT, chat(n=2, ignore_eos=True))):
        usage = (await http.post(path, json=body)).json()["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert isinstance(usage["prompt_tokens_details"]["cached_tokens"], int)
        *before, last = await streamed(http, path, body)
        assert [chunk["usage"] for chunk in before] == [None] * len(before)
        assert last["choices"] == []
        assert set(last["usage"]) == set(usage)
        assert last["usage"]["total_tokens"] == usage["total_tokens"]
        assert "cached_tokens" in last["usage"]["prompt_tokens_details"]


async def test_the_official_client_tries_again_when_told_to_and_only_then(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    await client.models.list()

    def take_away() -> None:
        EngineProcess.objects.update(state="backing_off")
        change_stamp_bump("replicas")

    answers: list[httpx.Response] = []

    async def note(answer: httpx.Response) -> None:
        answers.append(answer)

    http.event_hooks = {"response": [note]}
    patient = client.with_options(max_retries=1)
    with pytest.raises(openai.BadRequestError):
        await patient.chat.completions.create(**chat(n=10_000))
    assert [answer.headers["x-should-retry"] for answer in answers] == ["false"]
    answers.clear()
    await database_hop(take_away)
    await wait_until_async("the change to be seen", lambda: not runtime.table.snapshot.endpoints)
    with pytest.raises(openai.InternalServerError):
        await patient.chat.completions.create(**chat())
    told = [(each.headers["x-should-retry"], each.headers["retry-after"]) for each in answers]
    assert told == [("true", "1")] * 2
    assert all(answer.headers["x-request-id"] for answer in answers)
    assert all(int(answer.headers["openai-processing-ms"]) >= 0 for answer in answers)
