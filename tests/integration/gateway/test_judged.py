"""Which answers are kept for a judge, and what of them; by every door, against a real engine."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from django.core.cache import cache

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.experiments.types import VariantSpec
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.services import answer
from apps.judging.models import Judge
from apps.judging.services import judge_update
from apps.judging.types import Turn
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_secret
from apps.routing.models import Route, RouteTarget
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.experimenting import CHAT, user_in
from tests.integration.gateway.failing_over import deployed, engines, kill, rows, said
from tests.integration.gateway.judged import begun, judge, judged, samples, waiting
from tests.integration.gateway.streams import ends, opened, send, until
from tests.models import random_llama_dir
from tests.processes import ServerRun
from tests.waiting import wait_until_async

USER = {"user": "u-1"}


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def test_it_is_kept_sealed_as_its_client_sent_it(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    """What an experiment makes of a prompt would tell the arms apart."""
    experiment = await begun(token, VariantSpec(name="b", prompt_template="Be brief. {system}"))
    inside = await user_in(experiment, "b", token)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Is the secret word heliotrope?"},
    ]
    response = await http.post(CHAT, json=chat(messages=messages, user=inside))
    assert response.status_code == 200, response.text
    told = response.json()["choices"][0]["message"]["content"]
    ((row, text),) = await samples(runtime)
    (record,) = await rows()
    assert record.experiment_arm.startswith("e")
    assert text.asked == (
        Turn(role="system", content="Be kind."),
        Turn(role="user", content="Is the secret word heliotrope?"),
    )
    assert (text.answer, text.is_cut) == (told, False)
    assert (row.tenant_id, row.end_user, row.attempt) == (token.tenant_id, inside, 0)
    assert row.request_id == response.headers["X-Request-Id"] == record.request_id
    assert "heliotrope" not in row.sealed and "kind" not in row.sealed
    made = await database_hop(Judge.objects.get)
    assert (made.n_taken, made.n_taken_in_day, made.n_scored) == (1, 1, 0)


BODIES: Mapping[str, dict[str, Any]] = {
    CHAT: chat(**USER),
    "/v1/completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 8, "echo": True, **USER},
    "/v1/responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 16, **USER},
    "/v1/messages": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "metadata": {"user_id": "u-1"},
    },
}


def told_by(path: str, body: Any) -> str:
    match path:
        case "/v1/completions":
            return str(body["choices"][0]["text"]).removeprefix("Hello")  # which it echoes
        case "/v1/responses":
            return str(body["output"][0]["content"][0]["text"])
        case "/v1/messages":
            return str(body["content"][0]["text"])
    return str(body["choices"][0]["message"]["content"])


@pytest.mark.parametrize("path", BODIES)
async def test_whole_and_streamed_at_every_http_door(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, path: str
) -> None:
    await begun(token)
    body = {"temperature": 0, **BODIES[path]}
    whole = await http.post(path, json=body)
    streamed = await http.post(path, json={**body, "stream": True})
    assert (whole.status_code, streamed.status_code) == (200, 200), whole.text
    (first, one), (second, other) = await samples(runtime)
    assert one.answer == told_by(path, whole.json())
    assert one == other
    assert one.asked == (Turn(role="user", content="Hello"),)
    assert [first.request_id, second.request_id] == [row.request_id for row in await rows()]


async def test_over_the_websocket(server: ServerRun, token: ApiToken) -> None:
    await begun(token)
    async with opened(server, token) as ws:

        async def is_seen() -> bool:
            await send(ws, type="start", id="c", **chat(**USER))
            await until(ws, ends("c"))
            return bool((await rows())[-1].experiment_arm)

        await wait_until_async("the server to see the experiment", is_seen)

        await send(ws, type="start", id="d", **chat(**USER))
        frames = await until(ws, ends("d"))
        told = "".join(frame["text"] for frame in frames if frame["type"] == "delta")

    async def kept() -> Any:
        found = await database_hop(waiting)
        return found if len(found) == 2 else None

    (_, text), (_, other) = await wait_until_async("both answers to be kept", kept)
    assert text == other
    assert text.answer == told != ""


async def test_of_a_batch(runtime: GatewayRuntime, token: ApiToken) -> None:
    await begun(token)
    principal = await database_hop(principal_of_secret, token.secret)
    body = msgspec.json.encode(chat(**USER))
    found = await answer(principal=principal, endpoint=CHAT, body=body, door="batch", priority=-1)
    ((row, _),) = await samples(runtime)
    assert row.request_id == found.request_id


async def test_the_first_of_several_answers(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token)
    response = await http.post(CHAT, json=chat(n=3, temperature=1.0, seed=7, **USER))
    first, *others = [each["message"]["content"] for each in response.json()["choices"]]
    ((_, text),) = await samples(runtime)
    assert text.answer == first
    assert text.answer not in others


async def test_two_judges_of_one_experiment(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    def made() -> list[int]:
        ids = [judge(name).pk for name in ("helpful", "polite")]
        idle = judge("idle")
        judged(token, judges=("helpful", "polite", "idle"))
        judge_update(judge=idle, seen=idle.version, actor=SYSTEM, is_on=False)
        return ids

    ids = await database_hop(made)
    assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
    (first, one), (second, other) = await samples(runtime)
    assert [first.judge_id, second.judge_id] == ids
    assert (first.request_id, one) == (second.request_id, other)


async def test_what_an_engine_made_before_it_died_is_not_of_the_answer(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, tmp_path: Path
) -> None:
    model_dir = random_llama_dir(tmp_path, max_position_embeddings=16_384)
    with engines(model_dir, "first") as runs:

        def made() -> None:
            new = deployed("first", runs["first"])
            route = Route.objects.get(name=MODEL)
            RouteTarget.objects.filter(route=route).update(weight=0, fallback_order=1)
            RouteTarget.objects.create(route=route, deployment=new, weight=1000)
            judge()
            judged(token)
            said()

        await database_hop(made)
        body = chat(max_tokens=1000, ignore_eos=True, **USER)
        asked = asyncio.create_task(http.post(CHAT, json=body))
        await wait_until_async(
            "it to run there", lambda: runs["first"].stats().n_completion_tokens > 20
        )
        kill(runs["first"])
        response = await asked
    assert response.status_code == 200, response.text
    assert len(await rows()) == 2
    ((row, text),) = await samples(runtime)
    assert text.answer == response.json()["choices"][0]["message"]["content"]
    assert row.request_id == response.headers["X-Request-Id"]
    assert row.request_id.endswith("-2")
