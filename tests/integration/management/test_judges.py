"""Judges by the management API: made, changed, looked at, removed; and whose token one has."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.audit.models import AuditEvent
from apps.core.hop import database_hop
from apps.judging.models import Judge
from apps.rbac.models import ApiToken
from apps.routing.models import Route
from tests.factories import (
    AnswerSampleFactory,
    ApiTokenFactory,
    ExperimentFactory,
    ExperimentMetricFactory,
    JudgeFactory,
    MembershipFactory,
    RouteFactory,
)
from tests.integration.management.conftest import error_of, events, headers_of, manager
from tests.rows import all_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "judges.md"
BODY: dict[str, Any] = {
    "name": "kind", "rubric": "5: helps. 1: does not.", "route": "team/strict", "highest": 7,
    "sample_percent": 12.5, "per_day": 50,
}  # fmt: skip
KEEPER = ("judging.view_judge", "judging.add_judge", "judging.change_judge", "routing.view_route")


@pytest.fixture
def route(transactional_db: None) -> Route:
    return RouteFactory(name="team/strict")


def state() -> list[Any]:
    return [*Judge.objects.values(), *all_of(AuditEvent).values()]


async def test_from_its_making_to_its_end(api: httpx.AsyncClient, route: Route) -> None:
    lent = await database_hop(ApiTokenFactory)
    made = await api.post("/judges", json={**BODY, "api_token": lent.pk})
    assert made.status_code == 201, made.text
    body = made.json()
    assert body == {
        "id": "kind", "object": "judge", "created_at": body["created_at"],
        "updated_at": body["updated_at"], "version": 1, "rubric": BODY["rubric"], "lowest": 1,
        "highest": 7, "route": "team/strict", "api_token": lent.pk, "sample_percent": 12.5,
        "per_day": 50, "is_on": True, "n_taken": 0, "n_scored": 0, "n_failed": 0, "n_waiting": 0,
        "last_problem": "",
    }  # fmt: skip
    tag = {"If-Match": made.headers["ETag"]}
    changed = await api.patch("/judges/kind", json={"is_on": False, "per_day": 9}, headers=tag)
    assert (changed.json()["is_on"], changed.json()["per_day"]) == (False, 9)
    assert (changed.json()["version"], changed.json()["api_token"]) == (2, lent.pk)
    late = await api.patch("/judges/kind", json={"per_day": 8}, headers=tag)
    assert late.status_code == 412

    def waits() -> None:
        AnswerSampleFactory(judge=Judge.objects.get())
        Judge.objects.update(n_taken=3, last_problem="It said nothing.")

    await database_hop(waits)
    listed = (await api.get("/judges")).json()["data"]
    assert listed == [(await api.get("/judges/kind")).json()]
    assert (listed[0]["n_taken"], listed[0]["n_waiting"]) == (3, 1)
    fixed = await api.patch("/judges/kind", json={"rubric": "5: flatters."})
    assert error_of(fixed) == (409, "judge_conflict", "rubric")
    freed = await api.patch("/judges/kind", json={"api_token": None})
    assert freed.json()["api_token"] is None
    gone = await api.delete("/judges/kind", headers={"If-Match": freed.headers["ETag"]})
    assert gone.json() == {"id": "kind", "object": "judge", "deleted": True}
    assert (await api.get("/judges/kind")).status_code == 404
    acts = [action for action, kind in await database_hop(events) if kind == "token"]
    assert acts == ["judge.created", "judge.updated", "judge.updated", "judge.deleted"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": "a b"}, "name"),
        ({"rubric": ""}, "rubric"),
        ({"rubric": "x" * 8001}, "rubric"),
        ({"rubric": "a\0b"}, "rubric"),
        ({"lowest": 7}, "highest"),
        ({"lowest": -1}, "lowest"),
        ({"highest": 101}, "highest"),
        ({"route": "nowhere"}, "route"),
        ({"api_token": 987654}, "api_token"),
        ({"sample_percent": 0}, "sample_percent"),
        ({"per_day": 0}, "per_day"),
        ({"mood": "strict"}, "mood"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_made(
    api: httpx.AsyncClient, route: Route, changes: dict[str, Any], param: str
) -> None:
    refused = await api.post("/judges", json={**BODY, **changes})
    assert error_of(refused)[::2] == (400, param), refused.text
    await database_hop(lambda: JudgeFactory(name="there", route=route))
    before = await database_hop(state)
    refused = await api.patch("/judges/there", json={"highest": 7, **changes})
    assert error_of(refused)[::2] == (400, param), refused.text
    assert await database_hop(state) == before


async def test_names_are_taken_once(api: httpx.AsyncClient, route: Route) -> None:
    await api.post("/judges", json=BODY)
    before = await database_hop(state)
    assert error_of(await api.post("/judges", json=BODY)) == (409, "already_exists", "name")
    assert await database_hop(state) == before


async def test_what_an_experiment_counts_stays(api: httpx.AsyncClient, route: Route) -> None:
    await api.post("/judges", json=BODY)

    def drafted() -> None:
        ExperimentMetricFactory(experiment=ExperimentFactory(name="cooler"), metric="judge:kind")

    await database_hop(drafted)
    before = await database_hop(state)
    for refused in (
        await api.delete("/judges/kind"),
        await api.patch("/judges/kind", json={"name": "kinder"}),
    ):
        assert error_of(refused)[:2] == (409, "judge_conflict")
        assert "experiment cooler" in refused.json()["error"]["message"]
    assert await database_hop(state) == before


# -- whose token -------------------------------------------------------------------------------


def keeper() -> tuple[ApiToken, ApiToken, ApiToken]:
    """Somebody who keeps judges everywhere and is a developer in one tenant; a token of theirs
    there, and one of the tenant's own."""
    token = manager(*KEEPER)
    assert token.owner is not None
    tenant = MembershipFactory(user=token.owner, role="developer").tenant
    own = ApiTokenFactory(tenant=tenant, owner=token.owner)
    return token, own, ApiTokenFactory(tenant=tenant)


async def test_a_token_is_lent_by_who_could_issue_it(
    anybody: httpx.AsyncClient, route: Route
) -> None:
    token, own, tenants = await database_hop(keeper)
    other = await database_hop(ApiTokenFactory)
    anybody.headers.update(headers_of(token))
    before = await database_hop(state)
    hidden = await anybody.post("/judges", json={**BODY, "api_token": other.pk})
    assert error_of(hidden)[::2] == (400, "api_token")
    denied = await anybody.post("/judges", json={**BODY, "api_token": tenants.pk})
    assert denied.status_code == 403
    assert await database_hop(state) == before
    made = await anybody.post("/judges", json={**BODY, "api_token": own.pk})
    assert (made.status_code, made.json()["api_token"]) == (201, own.pk)
    before = await database_hop(state)
    for number, status in ((other.pk, 400), (tenants.pk, 403)):
        answer = await anybody.patch("/judges/kind", json={"api_token": number})
        assert answer.status_code == status
    assert await database_hop(state) == before


async def test_without_that_power_the_rest_may_change(
    anybody: httpx.AsyncClient, route: Route
) -> None:
    lent = await database_hop(lambda: JudgeFactory(name="kind", route=route))
    anybody.headers.update(headers_of(await database_hop(lambda: manager(*KEEPER))))
    same = await anybody.patch("/judges/kind", json={"api_token": lent.api_token_id, "per_day": 3})
    assert (same.status_code, same.json()["per_day"]) == (200, 3)
    other = await database_hop(ApiTokenFactory)
    before = await database_hop(state)
    refused = await anybody.patch("/judges/kind", json={"api_token": other.pk})
    assert error_of(refused)[::2] == (400, "api_token")
    assert await database_hop(state) == before


# -- the page ----------------------------------------------------------------------------------


async def test_what_the_page_sends(api: httpx.AsyncClient, transactional_db: None) -> None:
    """docs/judges.md as it stands there."""
    [sent] = re.findall(r"curl .*?/v1/manage(\S+) .*?--data '(.*?)'", PAGE.read_text(), re.DOTALL)
    path, body = sent[0], json.loads(sent[1])

    def there() -> None:
        RouteFactory(name=body["route"])
        ApiTokenFactory(pk=body["api_token"])

    await database_hop(there)
    made = await api.post(path, json=body)
    assert (made.status_code, made.json()["sample_percent"]) == (201, 20.0)
