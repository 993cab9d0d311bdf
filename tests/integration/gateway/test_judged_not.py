"""Of which answers nothing is kept for a judge; and that keeping them harms no request."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from django.core.cache import cache
from django.db import OperationalError

from apps.core.hop import database_hop
from apps.gateway import sample_keeper
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.services import answer
from apps.gateway.types import JUDGE
from apps.judging.models import AnswerSample, Judge
from apps.judging.selectors import is_sampled
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_secret
from apps.routing.models import Route, RouteTarget
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.experimenting import CHAT
from tests.integration.gateway.failing_over import deployed, engines, kill, rows, said
from tests.integration.gateway.judged import allowed, begun, judge, judged, samples
from tests.models import random_llama_dir
from tests.rows import all_of
from tests.waiting import wait_until_async

USER = {"user": "u-1"}


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def nothing_is_kept(runtime: GatewayRuntime) -> None:
    assert await samples(runtime) == []
    taken = await database_hop(lambda: list(Judge.objects.values_list("n_taken", "day")))
    assert taken == [(0, None)]


async def test_a_tenant_that_does_not_allow_it(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    experiment = await begun(token)
    await database_hop(lambda: allowed(token.tenant_id, is_allowed=False))
    response = await http.post(CHAT, json=chat(**USER))
    assert response.status_code == 200
    (row,) = await rows()
    assert row.experiment_arm.startswith(f"e{experiment.pk}.")  # it takes part all the same
    await nothing_is_kept(runtime)


async def test_a_tenant_that_has_allowed_it_until_now(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    """Its token was checked a moment ago: what is kept asks anew."""
    await begun(token)
    assert (await http.post(CHAT, json=chat())).status_code == 200  # nobody's, and in no arm
    await database_hop(lambda: allowed(token.tenant_id, is_allowed=False))
    assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
    await nothing_is_kept(runtime)


async def test_who_is_in_no_experiment(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token, eligibility={"end_user_prefixes": ["vip-"]})
    assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
    await nothing_is_kept(runtime)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 2}),
        ("/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 0, "echo": True}),
        (CHAT, chat("word " * 4000)),
    ],
    ids=["token ids", "only an echo", "too long"],
)
async def test_what_no_judge_could_read(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    token: ApiToken,
    path: str,
    body: dict[str, Any],
) -> None:
    await begun(token)
    response = await http.post(path, json={**body, **USER})
    assert response.status_code == (200 if path != CHAT else 400)
    await nothing_is_kept(runtime)


async def test_whose_client_left(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token)
    body = chat(max_tokens=3000, ignore_eos=True, **USER)
    asked = asyncio.create_task(http.post(CHAT, json=body))

    async def has_a_row() -> bool:
        return bool(await rows())

    await wait_until_async("it to be reserved", has_a_row)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)

    async def is_settled() -> bool:
        return [row.outcome for row in await rows()] == ["aborted"]

    await wait_until_async("it to be settled", is_settled)
    await nothing_is_kept(runtime)


async def test_one_that_failed(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken, tmp_path: Path
) -> None:
    model_dir = random_llama_dir(tmp_path, max_position_embeddings=16_384)
    with engines(model_dir, "only") as runs:

        def made() -> None:
            new = deployed("only", runs["only"])
            RouteTarget.objects.filter(route__name=MODEL).update(deployment=new)
            judge()
            judged(token)
            said()

        await database_hop(made)
        body = chat(max_tokens=5000, ignore_eos=True, stream=True, **USER)
        asked = asyncio.create_task(http.post(CHAT, json=body))
        await wait_until_async(
            "it to run there", lambda: runs["only"].stats().n_completion_tokens > 20
        )
        kill(runs["only"])
        await asked
    (row,) = await rows()
    assert row.outcome in ("failed", "interrupted")
    await nothing_is_kept(runtime)


async def test_one_that_is_told_again(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await database_hop(lambda: Route.objects.update(caches_responses=True))
    await begun(token)
    told = [(await http.post(CHAT, json=chat(**USER))).headers["X-Response-Cache"] for _ in "123"]
    assert told == ["miss", "hit", "hit"]
    ((row, _),) = await samples(runtime)
    first, *_ = await rows()
    assert row.request_id == first.request_id


async def test_what_a_judge_itself_says(runtime: GatewayRuntime, token: ApiToken) -> None:
    """Else judges would judge each other for ever."""
    await begun(token, subject="token")
    principal = await database_hop(principal_of_secret, token.secret)
    body = msgspec.json.encode(chat(**USER))
    for door in (JUDGE, "batch"):
        found = await answer(principal=principal, endpoint=CHAT, body=body, door=door, priority=-1)
        assert found.status == 200
    judges, other = await rows()
    assert (judges.door, judges.experiment_arm) == (JUDGE, "")
    ((row, _),) = await samples(runtime)
    assert row.request_id == other.request_id


async def test_a_share_of_answers(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token, sample_percent=30.0)
    for _ in range(20):
        assert (await http.post(CHAT, json=chat(max_tokens=1, **USER))).status_code == 200
    kept = [row.request_id for row, _ in await samples(runtime)]
    made = await database_hop(Judge.objects.get)
    expected = [
        row.request_id
        for row in await rows()
        if is_sampled(row.request_id, judge_id=made.pk, percent=30.0)
    ]
    assert kept == expected
    assert len(kept) < 20


async def test_a_day_has_room_for_so_many_however_they_come(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token, per_day=5)
    body = chat(max_tokens=1, **USER)
    answers = await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(12)))
    assert {each.status_code for each in answers} == {200}
    assert len(await samples(runtime)) == 5
    made = await database_hop(Judge.objects.get)
    assert (made.n_taken, made.n_taken_in_day) == (5, 5)


# -- nobody's request is harmed -------------------------------------------------------------------


async def test_a_database_that_is_away_loses_the_sample_and_nothing_else(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    token: ApiToken,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await begun(token)

    def fail(**_: object) -> None:
        raise OperationalError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(sample_keeper, "samples_keep", fail)
        assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
        await nothing_is_kept(runtime)
    assert "the database is away" in caplog.text
    assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
    ((row, _),) = await samples(runtime)
    lost, kept = await rows()
    assert (lost.outcome, kept.outcome, kept.request_id) == ("completed",) * 2 + (row.request_id,)


async def test_what_waits_to_be_written_is_written_before_a_process_ends(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await begun(token)
    bodies = [chat(max_tokens=1, **USER) for _ in range(6)]
    await asyncio.gather(*(http.post(CHAT, json=body) for body in bodies))
    await runtime.aclose()
    assert await database_hop(all_of(AnswerSample).count) == 6


async def test_more_than_can_be_written_are_not_held(
    http: httpx.AsyncClient,
    runtime: GatewayRuntime,
    token: ApiToken,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await begun(token)
    monkeypatch.setattr(sample_keeper, "MAX_WAITING", 0)
    assert (await http.post(CHAT, json=chat(**USER))).status_code == 200
    await nothing_is_kept(runtime)
    assert "too many wait" in caplog.text
