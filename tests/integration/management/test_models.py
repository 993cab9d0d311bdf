"""The catalogue and the machines through the management API."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from apps.core.hop import database_hop
from apps.registry.models import ModelVersion, RegisteredModel, StageMove
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    ModelVersionFactory,
    NodeFactory,
    RegisteredModelFactory,
    ReplicaFactory,
    VerificationRunFactory,
)
from tests.integration.management.conftest import error_of, events, headers_of, manager

FIRST = "/models/smollm2/versions/1"


@pytest.fixture
def version(transactional_db: None) -> Any:
    return ModelVersionFactory(
        model__name="smollm2", manifest={"files": {"a": {"size_bytes": 1, "sha256": "ab" * 32}}}
    )


def row() -> ModelVersion:
    return ModelVersion.objects.get(model__name="smollm2", version=1)


async def test_models_are_listed_and_described(api: httpx.AsyncClient, version: Any) -> None:
    def more() -> None:
        ModelVersionFactory(model=version.model, version=3)
        RegisteredModelFactory(name="empty")

    await database_hop(more)
    listed = (await api.get("/models")).json()["data"]
    assert [(each["id"], each["n_versions"], each["latest_version"]) for each in listed] == [
        ("empty", 0, None),
        ("smollm2", 2, 3),
    ]
    first = await api.get("/models/smollm2")
    tag = first.headers["etag"]
    changed = await api.patch(
        "/models/smollm2", json={"description": "Small."}, headers={"If-Match": tag}
    )
    assert changed.json() == {**first.json(), "description": "Small."}
    late = await api.patch(
        "/models/smollm2", json={"description": "Mine."}, headers={"If-Match": tag}
    )
    assert late.status_code == 412
    assert (await database_hop(RegisteredModel.objects.get, name="smollm2")).description == "Small."
    assert await database_hop(events) == [("registered_model.updated", "token")]
    assert (await api.get("/models/nothing")).status_code == 404
    renamed = await api.patch("/models/smollm2", json={"name": "x", "description": ""})
    assert error_of(renamed) == (400, "unknown_parameter", "name")


async def test_versions_are_listed_the_newest_first(api: httpx.AsyncClient, version: Any) -> None:
    def more() -> None:
        ModelVersionFactory(model=version.model, version=2, stage="approved")
        tagged = ModelVersionFactory(model=version.model, version=3)
        tagged.tags.create(name="small")
        ModelVersionFactory(model__name="other")

    await database_hop(more)
    path = "/models/smollm2/versions"

    async def ids(query: str = "") -> list[str]:
        return [each["id"] for each in (await api.get(f"{path}{query}")).json()["data"]]

    assert await ids() == ["smollm2:3", "smollm2:2", "smollm2:1"]
    assert await ids("?limit=1") == ["smollm2:3"]
    assert await ids("?after=smollm2:3&limit=1") == ["smollm2:2"]
    assert await ids("?stage=approved") == ["smollm2:2"]
    assert await ids("?tag=small") == ["smollm2:3"]
    for after in ("smollm2", "other:1", "smollm2:9", "x"):
        answer = await api.get(f"{path}?after={after}")
        assert error_of(answer) == (404, "not_found", "after"), after
    assert (await api.get("/models/nothing/versions")).status_code == 404


async def test_a_version_says_what_it_is_made_of(api: httpx.AsyncClient, version: Any) -> None:
    def more() -> None:
        ModelVersionFactory(
            model=version.model, version=2, parent=version, lineage="quantised", dtype="int8"
        )
        VerificationRunFactory(version=version, status="passed", figures={"perplexity": 7.5})

    await database_hop(more)
    found = (await api.get(FIRST)).json()
    assert (found["id"], found["stage"], found["task"]) == ("smollm2:1", "draft", "generate")
    assert found["manifest"] == {"files": {"a": {"size_bytes": 1, "sha256": "ab" * 32}}}
    assert found["figures"] == {"perplexity": 7.5}
    child = (await api.get("/models/smollm2/versions/2")).json()
    assert (child["parent"], child["lineage"], child["figures"]) == ("smollm2:1", "quantised", {})
    compared = (await api.get(f"{FIRST}/compare?to=smollm2:2")).json()
    facts = {each["label"]: each for each in compared["facts"]}
    assert (facts["Weights"]["left"], facts["Weights"]["right"]) == ("bfloat16", "int8")
    assert facts["Weights"]["is_different"]
    assert facts["Parameters"]["ratio"] == 1.0
    assert [each["verdict"] for each in compared["files"]] == ["left only"]
    unknown = await api.get(f"{FIRST}/compare?to=smollm2:9")
    assert error_of(unknown) == (400, "invalid_value", "to")
    assert error_of(await api.get(f"{FIRST}/compare")) == (
        400,
        "missing_required_parameter",
        "to",
    )
    for number in ("0", "9", "x", "01", "1" * 12):
        assert (await api.get(f"/models/smollm2/versions/{number}")).status_code == 404


async def test_what_is_said_of_a_version_is_set(api: httpx.AsyncClient, version: Any) -> None:
    await database_hop(lambda: ModelVersionFactory(model__name="base"))
    tag = (await api.get(FIRST)).headers["etag"]
    body = {
        "tags": ["chat", "small"], "license": "mit", "model_card": "# Hello",
        "parent": "base:1", "lineage": "fine_tuned",
    }  # fmt: skip
    changed = await api.patch(FIRST, json=body, headers={"If-Match": tag})
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()[name] for name in body} == body
    part = await api.patch(FIRST, json={"tags": ["small"]})
    assert (part.json()["tags"], part.json()["license"]) == (["small"], "mit")
    freed = await api.patch(FIRST, json={"parent": None, "lineage": ""})
    assert freed.json()["parent"] is None
    late = await api.patch(FIRST, json={"tags": []}, headers={"If-Match": tag})
    assert late.status_code == 412
    assert (await database_hop(row)).license == "mit"
    assert [action for action, _ in await database_hop(events)] == ["model_version.described"] * 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tags": ["Two Words"]}, "tags[0]"),
        ({"tags": [f"t{n}" for n in range(21)]}, "tags"),
        ({"license": "x" * 121}, "license"),
        ({"license": "a\0"}, "license"),
        ({"parent": "nothing:1", "lineage": "quantised"}, "parent"),
        ({"parent": "smollm2:1", "lineage": "quantised"}, "parent"),
        ({"lineage": "quantised"}, "lineage"),
        ({"stage": "approved"}, "stage"),
        ({"n_parameters": 1}, "n_parameters"),
    ],
)
async def test_a_wrong_description_is_refused_by_its_field(
    api: httpx.AsyncClient, version: Any, body: Any, param: str
) -> None:
    answer = await api.patch(FIRST, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    stored = await database_hop(row)
    assert (stored.license, stored.parent_id, stored.stage) == ("apache-2.0", None, "draft")
    assert await database_hop(events) == []


async def test_a_stage_is_moved_for_a_reason(api: httpx.AsyncClient, version: Any) -> None:
    await database_hop(lambda: ModelVersion.objects.update(stage="verified"))
    tag = (await api.get(FIRST)).headers["etag"]
    moved = await api.post(
        f"{FIRST}/stage",
        json={"stage": "approved", "reason": "Release 7"},
        headers={"If-Match": tag},
    )
    assert moved.status_code == 200, moved.text
    assert moved.json()["stage"] == "approved"
    (move,) = moved.json()["moves"]
    assert (move["before"], move["after"], move["reason"]) == ("verified", "approved", "Release 7")
    late = await api.post(f"{FIRST}/stage", json={"stage": "retired"}, headers={"If-Match": tag})
    assert late.status_code == 412
    refused = await api.post(f"{FIRST}/stage", json={"stage": "draft"})
    assert error_of(refused) == (409, "stage_move_refused", "stage")
    assert error_of(await api.post(f"{FIRST}/stage", json={"stage": "x"})) == (
        400, "invalid_value", "stage",
    )  # fmt: skip
    assert (await database_hop(row)).stage == "approved"
    assert await database_hop(StageMove.objects.count) == 1
    assert await database_hop(events) == [("model_version.stage_moved", "token")]


async def test_who_may_not_approve_does_not(anybody: httpx.AsyncClient, version: Any) -> None:
    def operator() -> Any:
        ModelVersion.objects.update(stage="verified")
        return manager(role="operator")

    anybody.headers.update(headers_of(await database_hop(operator)))
    answer = await anybody.post(f"{FIRST}/stage", json={"stage": "approved"})
    assert error_of(answer) == (403, "permission_denied", None)
    assert (await database_hop(row)).stage == "verified"
    assert await database_hop(events) == []
    assert (await anybody.post(f"{FIRST}/stage", json={"stage": "retired"})).status_code == 200


async def test_machines_say_what_is_free(api: httpx.AsyncClient) -> None:
    def make() -> None:
        device = DeviceFactory(node__name="a", free_bytes=5, total_bytes=9)
        chat = DeploymentFactory(name="chat")
        ReplicaFactory(deployment=chat, index=0, devices=[device], estimated_bytes=3)
        gpu = DeviceFactory(node=device.node, kind="cuda", uid="GPU-0")
        for name, n_bytes in (("x", 2**30), ("y", 2**31)):
            sleeper = DeploymentFactory(name=name, device_class="cuda", sleep_after_s=9)
            ReplicaFactory(deployment=sleeper, index=0, devices=[gpu], estimated_bytes=n_bytes)
        NodeFactory(name="b", seen_at=timezone.now() - timedelta(hours=1))

    await database_hop(make)
    first, second = (await api.get("/nodes")).json()["data"]
    assert (first["id"], first["is_seen"], first["n_cores"]) == ("a", True, 8)
    device, gpu = first["devices"]
    assert (device["id"], device["free_bytes"], device["total_bytes"]) == ("a/cpu", 5, 9)
    assert device["replicas"] == ["chat/0"]
    names = ("reserved_bytes", "shared_bytes", "n_sharing")
    assert [device[name] for name in names] == [3, 0, 0]
    assert [gpu[name] for name in names] == [2**30, 2**31 - 2**29, 2]
    assert (second["id"], second["is_seen"], second["devices"]) == ("b", False, [])
    assert (await api.get("/nodes/a")).json() == first
    assert (await api.get("/nodes/c")).status_code == 404
