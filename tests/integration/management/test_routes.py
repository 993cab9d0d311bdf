"""Routes through the management API: set as a whole, in part, and by whom."""

from typing import Any

import httpx
import pytest
from guardian.shortcuts import assign_perm

from apps.audit.models import AuditEvent
from apps.core.hop import database_hop
from apps.routing.models import Route
from apps.routing.selectors import targets_of
from tests.factories import (
    DeploymentFactory,
    ModelVersionFactory,
    RouteFactory,
    RouteTargetFactory,
    TenantFactory,
)
from tests.integration.management.conftest import error_of, events, headers_of, manager
from tests.rows import all_of

WHOLE = {
    "targets": [{"deployment": "a", "weight": 70}, {"deployment": "b", "weight": 30}],
    "fallbacks": ["c"],
    "aliases": ["chat-latest"],
    "defaults": {"temperature": 0.2, "max_tokens": 512},
    "description": "For everyone",
}


@pytest.fixture
def deployments(transactional_db: None) -> dict[str, Any]:
    return {name: DeploymentFactory(name=name) for name in "abc"}


def said(name: str = "team/chat") -> list[str]:
    return sorted(map(str, targets_of(Route.objects.get(name=name))))


async def test_one_is_set_looked_at_and_listed(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    made = await api.put("/routes/team/chat", json=WHOLE)
    assert made.status_code == 200, made.text
    found = made.json()
    assert {name: found[name] for name in WHOLE} == WHOLE
    assert (found["id"], found["object"], found["is_active"]) == ("team/chat", "route", True)
    assert (found["tenants"], found["is_restricted"], found["caches_responses"]) == (
        [], False, False,
    )  # fmt: skip
    looked = await api.get("/routes/team/chat")
    assert (looked.json(), looked.headers["etag"]) == (found, made.headers["etag"])
    assert (await api.get("/routes")).json()["data"] == [found]
    assert await database_hop(said) == ["a=70", "b=30", "c as fallback 1"]
    assert await database_hop(events) == [("route.created", "token")]


async def test_setting_it_again_sets_all_of_it(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    await api.put("/routes/team/chat", json=WHOLE)
    same = await api.put("/routes/team/chat", json=WHOLE)
    assert same.status_code == 200
    assert await database_hop(events) == [("route.created", "token")]
    less = await api.put("/routes/team/chat", json={"targets": [{"deployment": "b"}]})
    found = less.json()
    assert (found["targets"], found["fallbacks"]) == ([{"deployment": "b", "weight": 100}], [])
    assert (found["aliases"], found["defaults"], found["description"]) == ([], {}, "")
    assert await database_hop(said) == ["b=100"]
    event = await database_hop(all_of(AuditEvent).latest, "pk")
    assert event.changes["targets"] == [["a=70", "b=30", "c as fallback 1"], ["b=100"]]


async def test_a_part_is_set_and_the_rest_stays(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    await api.put("/routes/team/chat", json=WHOLE)
    shifted = await api.patch(
        "/routes/team/chat", json={"targets": [{"deployment": "b", "weight": 100}]}
    )
    assert shifted.json()["fallbacks"] == ["c"]
    assert await database_hop(said) == ["b=100", "c as fallback 1"]
    # What becomes a fallback has no weight any more, and the other way round.
    chained = await api.patch(
        "/routes/team/chat", json={"targets": [{"deployment": "c"}], "fallbacks": ["b", "a"]}
    )
    assert chained.json()["fallbacks"] == ["b", "a"]
    back = await api.patch("/routes/team/chat", json={"targets": [{"deployment": "b"}]})
    assert (back.json()["targets"], back.json()["fallbacks"]) == (
        [{"deployment": "b", "weight": 100}],
        ["a"],
    )
    off = await api.patch("/routes/team/chat", json={"is_active": False, "name": "chat"})
    found = off.json()
    assert (found["id"], found["is_active"], found["aliases"]) == ("chat", False, ["chat-latest"])
    assert (await api.get("/routes/team/chat")).status_code == 404
    actions = [action for action, _ in await database_hop(events)]
    assert actions == ["route.created", *["route.updated"] * 4]


async def test_one_that_is_there_is_not_made_anew(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    only_new = {"If-None-Match": "*"}
    made = await api.put("/routes/team/chat", json=WHOLE, headers=only_new)
    assert made.status_code == 200
    again = await api.put(
        "/routes/team/chat", json={"targets": [{"deployment": "b"}]}, headers=only_new
    )
    assert error_of(again) == (412, "precondition_failed", None)
    assert await database_hop(said) == ["a=70", "b=30", "c as fallback 1"]
    odd = await api.put("/routes/x", json=WHOLE, headers={"If-None-Match": '"a"'})
    assert error_of(odd) == (400, "invalid_value", "If-None-Match")
    gone = await api.put("/routes/x", json=WHOLE, headers={"If-Match": "*"})
    assert error_of(gone) == (412, "precondition_failed", None)
    assert await database_hop(Route.objects.count) == 1


async def test_of_two_who_write_the_later_hears_of_the_other(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    tag = (await api.put("/routes/team/chat", json=WHOLE)).headers["etag"]
    first = await api.patch(
        "/routes/team/chat", json={"targets": [{"deployment": "b"}]}, headers={"If-Match": tag}
    )
    assert (first.status_code, first.headers["etag"] != tag) == (200, True)
    for method, body in (
        ("PATCH", {"description": "Mine"}),
        ("PUT", WHOLE),
        ("DELETE", None),
    ):
        late = await api.request(method, "/routes/team/chat", json=body, headers={"If-Match": tag})
        assert error_of(late) == (412, "precondition_failed", None), method
    assert await database_hop(said) == ["b=100", "c as fallback 1"]
    assert [action for action, _ in await database_hop(events)] == [
        "route.created",
        "route.updated",
    ]
    gone = await api.delete("/routes/team/chat", headers={"If-Match": first.headers["etag"]})
    assert gone.json() == {"id": "team/chat", "object": "route", "deleted": True}
    assert not await database_hop(Route.objects.exists)


async def test_it_is_for_some_tenants(api: httpx.AsyncClient, deployments: dict[str, Any]) -> None:
    await database_hop(lambda: TenantFactory(slug="acme"))
    body = {**WHOLE, "is_restricted": True, "tenants": ["acme"]}
    made = await api.put("/routes/team/chat", json=body)
    assert (made.json()["is_restricted"], made.json()["tenants"]) == (True, ["acme"])
    unknown = await api.patch("/routes/team/chat", json={"tenants": ["acme", "nobody"]})
    assert error_of(unknown) == (400, "invalid_value", "tenants[1]")
    assert (await api.get("/routes/team/chat")).json()["tenants"] == ["acme"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"targets": []}, "invalid_value", "targets"),
        ({"targets": [{"deployment": "z"}]}, "invalid_value", "targets[0].deployment"),
        ({"targets": [{"deployment": "a"}] * 2}, "invalid_value", "targets"),
        ({"targets": [{"deployment": "a", "weight": 0}]}, "invalid_value", "targets"),
        (
            {"targets": [{"deployment": "a", "weight": 1001}]},
            "invalid_value",
            "targets[0].weight",
        ),
        ({"targets": [{"deployment": "c"}]}, "invalid_value", "targets"),  # also a fallback
        ({"targets": [{"deployment": "e"}]}, "invalid_value", "targets"),  # makes embeddings
        ({"targets": [{"weight": 1}]}, "missing_required_parameter", "targets[0].deployment"),
        ({"fallbacks": ["z"]}, "invalid_value", "fallbacks[0]"),
        ({"aliases": ["taken"]}, "invalid_value", "aliases"),
        ({"aliases": ["two words"]}, "invalid_value", "aliases[0]"),
        ({"aliases": ["chat\n"]}, "invalid_value", "aliases[0]"),
        ({"defaults": {"temperature": 3}}, "invalid_value", "defaults"),
        ({"defaults": {"colour": 1}}, "invalid_value", "defaults"),
        ({"defaults": {"top_p": "x"}}, "invalid_type", "defaults[...]"),
        ({"description": "x" * 301}, "invalid_value", "description"),
        ({"description": "a\0"}, "invalid_value", "description"),
        ({"weights": {}}, "unknown_parameter", "weights"),
    ],
)
async def test_a_wrong_route_is_refused_by_its_field(
    api: httpx.AsyncClient,
    deployments: dict[str, Any],
    change: dict[str, Any],
    code: str,
    param: str,
) -> None:
    def others() -> None:
        RouteFactory(name="taken")
        DeploymentFactory(name="e", model_version=ModelVersionFactory(architecture="BertModel"))

    await database_hop(others)
    answer = await api.put("/routes/team/chat", json={**WHOLE, **change})
    assert error_of(answer) == (400, code, param), answer.text
    assert await database_hop(Route.objects.count) == 1
    await api.put("/routes/team/chat", json=WHOLE)
    before = await api.get("/routes/team/chat")
    assert error_of(await api.patch("/routes/team/chat", json={**WHOLE, **change})) == (
        400,
        code,
        param,
    )
    assert (await api.get("/routes/team/chat")).json() == before.json()


async def test_a_name_that_is_none_is_refused(
    api: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    for name in ("-x", "two%20words", "a" * 121):
        answer = await api.put(f"/routes/{name}", json=WHOLE)
        assert error_of(answer) == (400, "invalid_value", "name"), name
    assert not await database_hop(Route.objects.exists)
    empty = await api.put("/routes/x", content=b"", headers={"Content-Type": "application/json"})
    assert error_of(empty) == (400, "invalid_json", None)


async def test_that_a_name_is_taken_is_told_to_who_may_take_one(
    anybody: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    await database_hop(lambda: RouteFactory(name="secret", deployment=deployments["c"]))
    nobody = await database_hop(manager)
    maker = await database_hop(manager, "routing.add_route", "deployments.view_deployment")
    body = {"targets": [{"deployment": "a"}]}
    for token, taken in (
        (nobody, (403, "permission_denied", None)),
        (maker, (409, "already_exists", "name")),
    ):
        answer = await anybody.put("/routes/secret", json=body, headers=headers_of(token))
        assert error_of(answer) == taken
    free = await anybody.put("/routes/free", json=body, headers=headers_of(nobody))
    assert error_of(free) == (403, "permission_denied", None)
    assert await database_hop(said, "secret") == ["c=100"]
    assert await database_hop(events) == []


async def test_who_was_given_one_route_sets_that_one_and_leads_it_to_no_other(
    anybody: httpx.AsyncClient, deployments: dict[str, Any]
) -> None:
    def give() -> Any:
        token = manager()
        RouteFactory(name="other", deployment=deployments["c"])
        mine = RouteFactory(name="mine", deployment=deployments["a"])
        RouteTargetFactory(route=mine, deployment=deployments["b"], weight=1)
        assign_perm("routing.change_route", token.owner, mine)
        return token

    anybody.headers.update(headers_of(await database_hop(give)))
    assert [each["id"] for each in (await anybody.get("/routes")).json()["data"]] == ["mine"]
    body = {"targets": [{"deployment": "a", "weight": 1}, {"deployment": "b", "weight": 9}]}
    assert (await anybody.patch("/routes/mine", json=body)).status_code == 200
    led = await anybody.patch("/routes/mine", json={"targets": [{"deployment": "c"}]})
    assert error_of(led) == (400, "invalid_value", "targets[0].deployment")
    for method, path, sent, expected in (
        ("GET", "/routes/other", None, 404),
        ("PATCH", "/routes/other", body, 404),
        ("PUT", "/routes/other", body, 403),
        ("PUT", "/routes/third", body, 403),
        ("DELETE", "/routes/mine", None, 403),
    ):
        answer = await anybody.request(method, path, json=sent)
        assert answer.status_code == expected, (method, path)
    assert await database_hop(said, "mine") == ["a=1", "b=9"]
    assert await database_hop(said, "other") == ["c=100"]
    assert [action for action, _ in await database_hop(events)] == ["route.updated"]
