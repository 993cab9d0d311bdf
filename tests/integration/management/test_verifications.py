"""Verifications through the management API. What a worker finds out is written here as it would."""

from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.registry.models import ModelVersion, VerificationRun
from apps.registry.services import verification_claim, verification_end
from apps.registry.types import VerificationCheck, VerificationOutcome
from tests.factories import ModelVersionFactory, VerificationRunFactory
from tests.integration.management.conftest import error_of, events


@pytest.fixture
def version(transactional_db: None) -> Any:
    return ModelVersionFactory(model__name="smollm2")


def passed() -> None:
    claim = verification_claim(owner="worker", lease_s=60)
    assert claim is not None
    checks = (VerificationCheck(name="greedy", is_passed=True, said="the same twice"),)
    outcome = VerificationOutcome(checks=checks, figures={"perplexity": 7.5})
    verification_end(claim=claim, outcome=outcome)


async def test_one_is_asked_for_and_what_it_found_is_told(
    api: httpx.AsyncClient, version: Any
) -> None:
    asked = await api.post("/verifications", json={"version": "smollm2:1"})
    assert asked.status_code == 201, asked.text
    run = asked.json()
    assert (run["object"], run["version"], run["status"]) == (
        "verification", "smollm2:1", "queued",
    )  # fmt: skip
    await database_hop(passed)
    found = (await api.get(f"/verifications/{run['id']}")).json()
    assert (found["status"], found["figures"]) == ("passed", {"perplexity": 7.5})
    assert found["checks"] == [{"name": "greedy", "is_passed": True, "said": "the same twice"}]
    detail = (await api.get("/models/smollm2/versions/1")).json()
    assert (detail["stage"], detail["figures"]) == ("verified", {"perplexity": 7.5})
    assert await database_hop(events) == [
        ("verification.asked", "token"),
        ("verification.passed", "token"),
        ("model_version.stage_moved", "token"),
    ]
    ended = await api.post(f"/verifications/{run['id']}/cancel")
    assert error_of(ended) == (409, "verification_refused", "run")


async def test_the_newest_version_is_meant_where_none_is_named(
    api: httpx.AsyncClient, version: Any
) -> None:
    await database_hop(lambda: ModelVersionFactory(model=version.model, version=2))
    asked = await api.post("/verifications", json={"version": "smollm2"})
    assert asked.json()["version"] == "smollm2:2"


async def test_one_that_waits_is_cancelled(api: httpx.AsyncClient, version: Any) -> None:
    run = (await api.post("/verifications", json={"version": "smollm2:1"})).json()
    cancelled = await api.post(f"/verifications/{run['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await database_hop(ModelVersion.objects.get)).stage == "draft"


async def test_a_version_is_verified_once_at_a_time(api: httpx.AsyncClient, version: Any) -> None:
    first = await api.post("/verifications", json={"version": "smollm2:1"})
    assert first.status_code == 201
    second = await api.post("/verifications", json={"version": "smollm2:1"})
    assert error_of(second) == (409, "verification_refused", "version")
    assert await database_hop(VerificationRun.objects.count) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"version": "smollm2:2"}, (400, "invalid_value", "version")),
        ({"version": "smollm2:0"}, (400, "invalid_value", "version")),
        ({"version": "nothing"}, (400, "invalid_value", "version")),
        ({"version": "old:1"}, (409, "verification_refused", "version")),
        ({"version": 1}, (400, "invalid_type", "version")),
        ({}, (400, "missing_required_parameter", "version")),
    ],
)
async def test_a_wrong_one_is_refused(
    api: httpx.AsyncClient, version: Any, body: Any, expected: tuple[int, str, str]
) -> None:
    await database_hop(lambda: ModelVersionFactory(model__name="old", stage="retired"))
    answer = await api.post("/verifications", json=body)
    assert error_of(answer) == expected
    assert not await database_hop(VerificationRun.objects.exists)
    assert await database_hop(events) == []


async def test_the_newest_come_first_and_by_status(api: httpx.AsyncClient) -> None:
    made = [
        await database_hop(lambda status=status: VerificationRunFactory(status=status))
        for status in ("passed", "queued", "passed")
    ]
    ids = [str(run.pk) for run in reversed(made)]
    listed = (await api.get("/verifications?limit=2")).json()
    assert ([each["id"] for each in listed["data"]], listed["has_more"]) == (ids[:2], True)
    rest = (await api.get(f"/verifications?after={ids[1]}")).json()
    assert [each["id"] for each in rest["data"]] == ids[2:]
    queued = (await api.get("/verifications?status=queued")).json()
    assert [each["id"] for each in queued["data"]] == [ids[1]]
    assert error_of(await api.get("/verifications?after=x")) == (404, "not_found", "after")
    for run_id in ("x", "0", "-1", "9" * 30, "%D9%A1"):
        assert (await api.get(f"/verifications/{run_id}")).status_code == 404
        assert (await api.post(f"/verifications/{run_id}/cancel")).status_code == 404
