"""``/v1/feedback`` and ``/v1/events`` in this process, about answers of a real engine."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from django.core.cache import cache

from apps.core.hop import database_hop
from apps.feedback.models import MetricEvent
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import RefusalRollup, UsageRecord
from apps.rbac.models import ApiToken
from apps.tenants.models import Plan
from tests.factories import ApiTokenFactory, UsageRecordFactory
from tests.integration.gateway.conftest import chat
from tests.rows import all_of

FEEDBACK, EVENTS = "/v1/feedback", "/v1/events"
CLICK = {"name": "clicks", "value": 2}


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def rows() -> list[MetricEvent]:
    return await database_hop(lambda: list(all_of(MetricEvent).order_by("id")))


async def asked(http: httpx.AsyncClient, **fields: Any) -> str:
    answer = await http.post("/v1/chat/completions", json=chat(**fields))
    assert answer.json()["id"] == answer.headers["x-request-id"]
    return str(answer.json()["id"])


async def test_an_answer_is_rated_and_rated_anew(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    request_id = await asked(http, user="ann")
    body = {"request_id": request_id, "rating": "up", "comment": "nice"}
    answer = await http.post(FEEDBACK, json=body)
    assert answer.status_code == 200
    found = answer.json()
    assert abs(found.pop("created_at") - time.time()) < 60
    assert found == {"object": "feedback", **body}
    answer = await http.post(FEEDBACK, json={"request_id": request_id, "rating": "down"})
    assert (answer.json()["rating"], answer.json()["comment"]) == ("down", None)
    (row,) = await rows()
    assert (row.tenant_id, row.api_token_id, row.value) == (token.tenant_id, token.pk, 0.0)
    assert (row.request_id, row.end_user, row.comment) == (request_id, "ann", "")


async def test_a_stream_is_rated_before_it_has_ended(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as stream:
        request_id = stream.headers["x-request-id"]
        answer = await http.post(FEEDBACK, json={"request_id": request_id, "rating": "up"})
        assert answer.status_code == 200
        async for _ in stream.aiter_lines():
            pass


async def test_numbers_are_kept_of_requests_and_of_end_users(http: httpx.AsyncClient) -> None:
    request_id = await asked(http, user="ann")
    at = time.time() - 3600.25
    told = [
        {**CLICK, "request_id": request_id},
        {**CLICK, "request_id": request_id},
        {"name": "basket.value", "value": -1.5, "user": "bob", "timestamp": at},
    ]
    answers = [(await http.post(EVENTS, json=body)).json() for body in told]
    first, second, third = await rows()
    assert answers[0] == {
        "object": "event",
        "name": "clicks",
        "value": 2.0,
        "request_id": request_id,
        "user": None,
        "event_id": None,
        "timestamp": first.created_at.timestamp(),
    } | {"user": "ann"}  # the request's
    assert (first.value, second.value, third.value) == (2.0, 2.0, -1.5)
    assert (third.request_id, third.end_user) == ("", "bob")
    assert abs(third.created_at.timestamp() - at) < 0.001


async def test_an_event_with_an_id_is_one_event(http: httpx.AsyncClient) -> None:
    body = {**CLICK, "user": "ann", "event_id": "click-1"}
    answers = await asyncio.gather(*(http.post(EVENTS, json=body) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    other = await http.post(EVENTS, json={**body, "value": 3})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "event_id_reused")
    assert other.json()["error"]["param"] == "event_id"
    assert [row.value for row in await rows()] == [2.0]


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (FEEDBACK, {"rating": "up"}, "missing_required_parameter", "request_id"),
    (FEEDBACK, {"request_id": "r"}, "missing_required_parameter", "rating"),
    (FEEDBACK, {"request_id": "r", "rating": "great"}, "invalid_value", "rating"),
    (FEEDBACK, {"request_id": "", "rating": "up"}, "invalid_value", "request_id"),
    (FEEDBACK, {"request_id": "r" * 65, "rating": "up"}, "invalid_value", "request_id"),
    (FEEDBACK, {"request_id": "r", "rating": "up", "comment": "x" * 1001}, "invalid_value",
     "comment"),
    (FEEDBACK, {"request_id": "r", "rating": "up", "x": 1}, "unknown_parameter", "x"),
    (EVENTS, CLICK, "missing_required_parameter", "request_id"),
    (EVENTS, {**CLICK, "request_id": "r", "user": "ann"}, "invalid_value", "user"),
    (EVENTS, {**CLICK, "user": ""}, "invalid_value", "user"),
    (EVENTS, {**CLICK, "user": "ann", "name": "feedback"}, "invalid_value", "name"),
    (EVENTS, {**CLICK, "user": "ann", "name": "judge:help"}, "invalid_value", "name"),
    (EVENTS, {**CLICK, "user": "ann", "name": "Clicks"}, "invalid_value", "name"),
    (EVENTS, {**CLICK, "user": "ann", "name": "clicks\n"}, "invalid_value", "name"),
    (EVENTS, {**CLICK, "user": "ann", "name": "x" * 65}, "invalid_value", "name"),
    (EVENTS, {**CLICK, "user": "ann", "event_id": "a b"}, "invalid_value", "event_id"),
    (EVENTS, {**CLICK, "user": "ann", "event_id": "a\n"}, "invalid_value", "event_id"),
    (EVENTS, {**CLICK, "user": "ann", "timestamp": -1}, "invalid_value", "timestamp"),
    (EVENTS, {**CLICK, "user": "ann", "timestamp": 1.7e12}, "invalid_value", "timestamp"),
    (EVENTS, {"name": "x", "user": "ann", "value": True}, "invalid_type", "value"),
    (EVENTS, {"name": "x", "user": "ann", "value": 1.1e12}, "invalid_value", "value"),
    (EVENTS, {"name": "x", "user": "ann"}, "missing_required_parameter", "value"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "code", "param"), REFUSED)
async def test_refusals_name_their_field(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    answer = await http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert await rows() == []


@pytest.mark.parametrize("number", ["1e999", "NaN", "Infinity", "1" + "0" * 400])
async def test_a_value_is_a_finite_number(http: httpx.AsyncClient, number: str) -> None:
    answer = await http.post(
        EVENTS,
        content=f'{{"name": "x", "user": "ann", "value": {number}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    assert await rows() == []


@pytest.mark.parametrize("request_id", ["theirs", "nobody's", "the\0irs"])
async def test_a_request_of_another_tenant_is_not_there(
    http: httpx.AsyncClient, request_id: str
) -> None:
    await database_hop(lambda: UsageRecordFactory(request_id="theirs", tenant_id=987))
    for path, more in ((FEEDBACK, {"rating": "up"}), (EVENTS, CLICK)):
        answer = await http.post(path, json={"request_id": request_id, **more})
        assert answer.status_code == 404
        assert answer.json() == {
            "error": {
                "message": "There is no such request in the ledger.",
                "type": "invalid_request_error",
                "param": "request_id",
                "code": "request_not_found",
            }
        }
    assert await rows() == []


@pytest.mark.parametrize("path", [FEEDBACK, EVENTS])
async def test_they_need_a_token_with_the_scope(
    http: httpx.AsyncClient, token: ApiToken, path: str
) -> None:
    await database_hop(lambda: UsageRecordFactory(request_id="r", tenant_id=token.tenant_id))
    other = await database_hop(lambda: ApiTokenFactory(tenant=token.tenant, scopes=["batches"]))
    body = {"request_id": "r"} | ({"rating": "up"} if path == FEEDBACK else CLICK)
    for secret, status, code in (
        (other.secret, 403, "insufficient_scope"),
        ("sk-nano-wrong", 401, "invalid_api_key"),
    ):
        headers = {"Authorization": f"Bearer {secret}"}
        answer = await http.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert await rows() == []
    assert (await http.post(path, json=body)).status_code == 200


async def test_they_count_in_the_minute_and_are_refused_beyond_it(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> None:
    await database_hop(
        lambda: Plan.objects.filter(tenants=token.tenant_id).update(requests_per_minute=3)
    )
    request_id = await asked(http)
    for rating in ("up", "down"):
        body = {"request_id": request_id, "rating": rating}
        assert (await http.post(FEEDBACK, json=body)).status_code == 200
    for path, late in ((FEEDBACK, body), (EVENTS, {**CLICK, "user": "ann"})):
        answer = await http.post(path, json=late)
        assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (429, "3")
        assert int(answer.headers["retry-after"]) >= 1
    assert [row.value for row in await rows()] == [0.0]
    assert await database_hop(all_of(UsageRecord).count) == 1  # they are no requests of the ledger
    await runtime.aclose()
    refused = await database_hop(
        lambda: list(all_of(RefusalRollup).values_list("code", "n_requests"))
    )
    assert refused == [("rate_limit_exceeded", 2)]


async def test_a_key_makes_a_retry_the_same_event(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    answers = [
        await http.post(EVENTS, json={**CLICK, "user": "ann"}, headers=headers) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert len(await rows()) == 1
