"""Rollouts through the management API. What a controller decides is not asked for here."""

from typing import Any

import httpx
import pytest
from guardian.shortcuts import assign_perm

from apps.core.hop import database_hop
from apps.rbac.models import ApiToken
from apps.rollouts.models import Rollout
from tests.factories import ApiTokenFactory
from tests.integration.management.conftest import error_of, headers_of, manager
from tests.integration.rollouts.places import Place, actions, everything, led, place

STEPS = [
    {"percent": 10, "min_requests": 20, "min_minutes": 0},
    {"percent": 100, "min_requests": 0, "min_minutes": 0},
]
ASKED = {"route": "chat", "candidate": "chat-new", "steps": STEPS}


@pytest.fixture
def here(transactional_db: None) -> Place:
    return place()


async def started(api: httpx.AsyncClient, **changed: Any) -> httpx.Response:
    answer = await api.post("/rollouts", json={**ASKED, **changed})
    assert answer.status_code == 201, answer.text
    return answer


async def test_one_is_started_looked_at_and_listed(api: httpx.AsyncClient, here: Place) -> None:
    answer = await started(api)
    found = answer.json()
    assert {name: found[name] for name in ("object", "route", "baseline", "candidate")} == {
        "object": "rollout", "route": "chat", "baseline": "chat-old", "candidate": "chat-new",
    }  # fmt: skip
    assert (found["state"], found["percent"], found["step"], found["version"]) == (
        "running", 10.0, 0, 1,
    )  # fmt: skip
    assert (found["steps"], found["approval"], found["alpha"]) == (STEPS, "automatic", 0.05)
    assert [each["metric"] for each in found["guardrails"]][:2] == ["error_rate", "ttft"]
    assert [each["percent"] for each in found["seen"]] == [10.0, 100.0]
    assert "20 more requests" in found["next"]
    looked = await api.get(f"/rollouts/{found['id']}")
    assert (looked.json(), looked.headers["etag"]) == (found, answer.headers["etag"])
    (listed,) = (await api.get("/rollouts")).json()["data"]
    assert listed == {name: found[name] for name in listed}
    for query, n in (("route=chat", 1), ("route=x", 0), ("state=running", 1), ("state=paused", 0)):
        assert len((await api.get(f"/rollouts?{query}")).json()["data"]) == n, query
    assert (await api.get("/rollouts?state=gone")).status_code == 400
    assert [(name, weight) for name, weight, *_ in await database_hop(led, here.route)] == [
        ("chat-new", 100), ("chat-old", 900),
    ]  # fmt: skip


async def test_it_is_paused_resumed_and_aborted(api: httpx.AsyncClient, here: Place) -> None:
    rollout = (await started(api)).json()["id"]
    for verb, state in (("pause", "paused"), ("resume", "running")):
        answer = await api.post(f"/rollouts/{rollout}/{verb}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    answer = await api.post(f"/rollouts/{rollout}/abort", json={"reason": "Not today"})
    assert (answer.json()["state"], answer.json()["reason"]) == ("aborted", "Not today")
    assert await database_hop(actions) == [
        "rollout.started", "rollout.paused", "rollout.resumed", "rollout.aborted",
    ]  # fmt: skip
    late = await api.post(f"/rollouts/{rollout}/pause")
    assert error_of(late)[:2] == (409, "rollout_conflict")


async def test_of_two_who_write_one_hears_of_the_other(api: httpx.AsyncClient, here: Place) -> None:
    made = await started(api)
    rollout, seen = made.json()["id"], {"If-Match": made.headers["etag"]}
    paused = await api.post(f"/rollouts/{rollout}/pause", headers=seen)
    assert paused.headers["etag"] == '"2"'
    before = await database_hop(everything)
    for verb in ("resume", "abort"):
        body = {} if verb == "abort" else None
        late = await api.post(f"/rollouts/{rollout}/{verb}", headers=seen, json=body)
        assert error_of(late)[:2] == (412, "precondition_failed")
    assert await database_hop(everything) == before
    fresh = {"If-Match": paused.headers["etag"]}
    assert (await api.post(f"/rollouts/{rollout}/resume", headers=fresh)).status_code == 200


async def test_nobody_approves_what_they_started_by_whichever_token(
    api: httpx.AsyncClient, owner: ApiToken, here: Place
) -> None:
    """The person behind the token counts."""
    made = (await started(api, needs_second_person=True)).json()
    assert (made["state"], made["percent"], made["may_approve"]) == ("pending", 0.0, False)
    assert made["refused"] == "You started it; somebody else has to approve it."
    other = await database_hop(
        lambda: ApiTokenFactory(tenant=owner.tenant, owner=owner.owner, scopes=["manage"])
    )
    before = await database_hop(everything)
    for token in (owner, other):
        refused = await api.post(f"/rollouts/{made['id']}/approve", headers=headers_of(token))
        assert error_of(refused)[:2] == (403, "second_person_needed")
    assert await database_hop(everything) == before
    second = await database_hop(lambda: manager(role="operator"))
    answer = await api.post(f"/rollouts/{made['id']}/approve", headers=headers_of(second))
    assert (answer.status_code, answer.json()["state"]) == (200, "running")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"route": "gone"}, (400, "invalid_value", "route")),
        ({"candidate": "gone"}, (400, "invalid_value", "candidate")),
        ({"baseline": "gone"}, (400, "invalid_value", "baseline")),
        ({"candidate": "chat-old"}, (400, "invalid_value", "candidate")),
        ({"steps": STEPS[:1]}, (400, "invalid_value", "steps")),
        ({"steps": []}, (400, "invalid_value", "steps")),
        ({"guardrails": [{"metric": "mood", "tolerance": 1}]}, None),
        ({"alpha": 2}, (400, "invalid_value", "alpha")),
        ({"approval": "never"}, (400, "invalid_value", "approval")),
        ({"more": 1}, None),
    ],
)
async def test_what_is_wrong_is_told_by_its_field(
    api: httpx.AsyncClient, here: Place, changed: dict[str, Any], expected: Any
) -> None:
    before = await database_hop(everything)
    answer = await api.post("/rollouts", json={**ASKED, **changed})
    if expected is None:
        assert answer.status_code == 400
    else:
        assert error_of(answer) == expected, answer.text
    assert await database_hop(everything) == before


async def test_a_route_has_one_at_a_time(api: httpx.AsyncClient, here: Place) -> None:
    await started(api)
    assert error_of(await api.post("/rollouts", json=ASKED))[:2] == (409, "rollout_conflict")
    assert await database_hop(Rollout.objects.count) == 1


async def test_who_was_given_a_route_rolls_that_out_and_sees_no_other(
    anybody: httpx.AsyncClient, here: Place
) -> None:
    held = [f"rollouts.{each}_rollout" for each in ("view", "add", "change")]
    token = await database_hop(lambda: manager(*held, "deployments.view_deployment"))
    await database_hop(place, name="other")
    anybody.headers.update(headers_of(token))

    def give(permission: str) -> None:
        assign_perm(permission, token.owner, here.route)

    await database_hop(give, "view_route")
    before = await database_hop(everything)
    assert (await anybody.post("/rollouts", json=ASKED)).status_code == 403
    other = {**ASKED, "route": "other", "candidate": "other-new"}
    assert error_of(await anybody.post("/rollouts", json=other))[0] == 400
    assert await database_hop(everything) == before
    await database_hop(give, "change_route")
    mine = (await started(anybody)).json()["id"]
    boss = headers_of(await database_hop(lambda: manager(role="owner")))
    theirs = (await anybody.post("/rollouts", json=other, headers=boss)).json()["id"]
    assert [each["id"] for each in (await anybody.get("/rollouts")).json()["data"]] == [mine]
    assert (await anybody.get(f"/rollouts/{theirs}")).status_code == 404
    assert (await anybody.post(f"/rollouts/{theirs}/pause")).status_code == 404
    assert (await anybody.post(f"/rollouts/{mine}/pause")).status_code == 200


@pytest.mark.parametrize("key", ["x", "0", "9" * 30, "1%00"])
async def test_what_is_no_rollout_is_not_there(
    api: httpx.AsyncClient, here: Place, key: str
) -> None:
    assert (await api.get(f"/rollouts/{key}")).status_code == 404
    assert (await api.post(f"/rollouts/{key}/pause")).status_code == 404
