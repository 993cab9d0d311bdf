"""Deployments through the management API: what somebody may do, and what comes of it."""

from typing import Any

import httpx
import pytest
from guardian.shortcuts import assign_perm

from apps.audit.models import AuditEvent
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.management.wire import deployments as wire
from apps.rbac.models import ApiToken
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    ModelVersionFactory,
    RemoteServerFactory,
    ReplicaFactory,
    RouteFactory,
)
from tests.integration.management.conftest import error_of, events, headers_of, manager
from tests.rows import all_of

NEW = {"name": "chat", "model_version": "smollm2:1", "kv_cache_tokens": 4096}


@pytest.fixture
def version(transactional_db: None) -> Any:
    return ModelVersionFactory(model__name="smollm2")


def stored(name: str = "chat") -> Deployment:
    return Deployment.objects.get(name=name)


async def test_one_is_made_looked_at_and_listed(
    api: httpx.AsyncClient, version: Any, owner: ApiToken
) -> None:
    made = await api.post("/deployments", json={**NEW, "max_replicas": 3})
    assert made.status_code == 201, made.text
    found = made.json()
    assert (found["id"], found["object"]) == ("chat", "deployment")
    assert found["desired"] == {
        "model_version": "smollm2:1",
        "desired_state": "running",
        "min_replicas": 1,
        "max_replicas": 3,
        "target_wait_ms": 1000,
        "device_class": "auto",
        "backend": "native",
        "dtype": "auto",
        "quantization": "none",
        "kv_cache_tokens": 4096,
        "max_sequences": 64,
        "max_batched_tokens": 512,
        "max_model_len": None,
        "kv_cache_dtype": "auto",
        "speculation": "auto",
        "attention": "auto",
        "tensor_parallel": 1,
        "sleep_after_s": None,
        "host_kv_cache_bytes": None,
        "disk_kv_cache_bytes": None,
        "draft_version": None,
        "remote": None,
        "remote_model": "",
        "remote_task": "generate",
    }
    assert (found["observed"]["state"], found["observed"]["n_replicas"]) == ("starting", 1)
    looked = await api.get("/deployments/chat")
    assert (looked.json(), looked.headers["etag"]) == (found, made.headers["etag"])
    listed = (await api.get("/deployments")).json()
    assert (listed["data"], listed["has_more"]) == ([found], False)
    event = await database_hop(all_of(AuditEvent).get)
    assert (event.action, event.actor_kind, event.actor_id) == (
        "deployment.created",
        "token",
        owner.pk,
    )
    assert event.actor_label.endswith(f", by {owner}")
    assert event.ip_address == "127.0.0.1"


async def test_replicas_say_where_they_run_and_what_they_hold(api: httpx.AsyncClient) -> None:
    def run() -> None:
        replica = ReplicaFactory(index=0, devices=[DeviceFactory(node__name="a")])
        replica.engine_process.stats = {"rss_bytes": 12, "n_running": 2, "n_waiting": 1}
        replica.engine_process.save()
        ReplicaFactory(
            deployment=replica.deployment, index=1, refusal="12 bytes are missing",
            engine_process__state="stopped", engine_process__ready=False,
        )  # fmt: skip
        Deployment.objects.update(name="chat", max_replicas=2, n_replicas=2)

    await database_hop(run)
    observed = (await api.get("/deployments/chat")).json()["observed"]
    assert (observed["state"], observed["n_ready"]) == ("degraded", 1)
    first, second = observed["replicas"]
    assert (first["state"], first["device"]) == ("ready", "a/cpu")
    assert (first["devices"], first["is_asleep"]) == (["a/cpu"], False)
    assert (first["memory_bytes"], first["n_running"], first["n_waiting"]) == (12, 2, 1)
    assert (second["device"], second["refusal"]) == (None, "12 bytes are missing")
    assert second["devices"] == []


async def test_a_key_makes_one_of_two_that_are_asked_for(
    api: httpx.AsyncClient, version: Any
) -> None:
    key = {"Idempotency-Key": "deploy-7"}
    first = await api.post("/deployments", json=NEW, headers=key)
    again = await api.post("/deployments", json=NEW, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert await database_hop(events) == [("deployment.created", "token")]


async def test_pages_follow_the_names(api: httpx.AsyncClient) -> None:
    def make() -> None:
        for name in ("c", "a", "b"):
            DeploymentFactory(name=name)

    await database_hop(make)
    first = (await api.get("/deployments?limit=2")).json()
    assert [each["id"] for each in first["data"]] == ["a", "b"]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("a", "b", True)
    rest = (await api.get("/deployments?limit=2&after=b")).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (["c"], False)
    assert (await api.get("/deployments?after=c")).json()["last_id"] is None


async def test_it_is_scaled_and_set_otherwise(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: DeploymentFactory(name="chat"))
    changed = await api.patch(
        "/deployments/chat", json={"min_replicas": 2, "max_replicas": 4, "dtype": "float32"}
    )
    assert changed.status_code == 200, changed.text
    desired = changed.json()["desired"]
    assert (desired["min_replicas"], desired["max_replicas"], desired["dtype"]) == (2, 4, "float32")
    row = await database_hop(stored)
    assert (row.min_replicas, row.n_replicas, row.max_replicas, row.generation) == (2, 2, 4, 2)
    same = await api.patch("/deployments/chat", json={"dtype": "float32"})
    assert same.headers["etag"] == changed.headers["etag"]
    assert await database_hop(events) == [("deployment.updated", "token")]


async def test_null_takes_a_bound_away(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: DeploymentFactory(name="chat", max_model_len=512))
    changed = await api.patch("/deployments/chat", json={"max_model_len": None})
    assert changed.json()["desired"]["max_model_len"] is None
    assert (await database_hop(stored)).max_model_len is None


async def test_of_two_who_write_the_later_hears_of_the_other(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: DeploymentFactory(name="chat"))
    tag = (await api.get("/deployments/chat")).headers["etag"]
    first = await api.patch(
        "/deployments/chat", json={"max_replicas": 2}, headers={"If-Match": tag}
    )
    assert (first.status_code, first.headers["etag"] != tag) == (200, True)
    for method, body in (("PATCH", {"max_replicas": 3}), ("DELETE", None)):
        late = await api.request(method, "/deployments/chat", json=body, headers={"If-Match": tag})
        assert error_of(late) == (412, "precondition_failed", None)
    assert (await database_hop(stored)).max_replicas == 2
    assert await database_hop(events) == [("deployment.updated", "token")]
    both = f'"other", {first.headers["etag"]}'
    third = await api.patch(
        "/deployments/chat", json={"max_replicas": 3}, headers={"If-Match": both}
    )
    assert third.status_code == 200
    anything = await api.delete("/deployments/chat", headers={"If-Match": "*"})
    assert anything.json() == {"id": "chat", "object": "deployment", "deleted": True}


async def test_what_is_seen_does_not_move_the_tag(api: httpx.AsyncClient) -> None:
    """A replica that comes up, or that the scaler adds, is nobody's setting."""
    replica = await database_hop(lambda: ReplicaFactory(deployment__max_replicas=2, index=0))
    path = f"/deployments/{replica.deployment.name}"
    tag = (await api.get(path)).headers["etag"]

    def scale() -> None:
        Deployment.objects.update(n_replicas=2, scaled_because="Requests waited.")

    await database_hop(scale)
    after = await api.get(path)
    assert (after.headers["etag"], after.json()["observed"]["n_replicas"]) == (tag, 2)


@pytest.mark.parametrize("header", ["abc", '"abc" x', '"a', ""])
async def test_what_is_no_tag_is_refused(api: httpx.AsyncClient, header: str) -> None:
    await database_hop(lambda: DeploymentFactory(name="chat"))
    answer = await api.delete("/deployments/chat", headers={"If-Match": header})
    assert error_of(answer) == (400, "invalid_value", "If-Match")
    assert (await database_hop(stored)).name == "chat"


async def test_it_is_drained_stopped_started_and_restarted(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: DeploymentFactory(name="chat"))
    draining = await api.post("/deployments/chat/drain")
    assert draining.json()["desired"]["desired_state"] == "draining"
    stopped = await api.post("/deployments/chat/stop")
    assert stopped.json()["desired"]["desired_state"] == "stopped"
    assert stopped.json()["observed"]["state"] == "stopped"
    started = await api.post("/deployments/chat/start")
    assert started.json()["desired"]["desired_state"] == "running"
    restarted = await api.post("/deployments/chat/restart")
    assert restarted.json()["observed"]["generation"] == 2
    assert await database_hop(events) == [
        ("deployment.draining", "token"),
        ("deployment.stopped", "token"),
        ("deployment.started", "token"),
        ("deployment.restarted", "token"),
    ]


async def test_what_does_not_fit_is_refused_with_what_is_missing(
    api: httpx.AsyncClient, version: Any
) -> None:
    await database_hop(lambda: DeviceFactory(free_bytes=2**20, total_bytes=2**30))
    answer = await api.post("/deployments", json=NEW)
    assert error_of(answer) == (409, "does_not_fit", "desired_state")
    assert "bytes) are missing on" in answer.json()["error"]["message"]
    assert not await database_hop(Deployment.objects.exists)
    made = await api.post("/deployments", json={**NEW, "desired_state": "stopped"})
    assert made.status_code == 201
    started = await api.post("/deployments/chat/start")
    assert error_of(started) == (409, "does_not_fit", "desired_state")
    assert (await database_hop(stored)).desired_state == "stopped"
    assert await database_hop(events) == [("deployment.created", "token")]


async def test_a_retired_version_is_not_deployed(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: ModelVersionFactory(model__name="smollm2", stage="retired"))
    answer = await api.post("/deployments", json=NEW)
    assert error_of(answer) == (409, "stage_not_deployable", "model_version")
    assert not await database_hop(Deployment.objects.exists)


async def test_what_a_route_leads_to_stays(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: RouteFactory(deployment=DeploymentFactory(name="chat")))
    answer = await api.delete("/deployments/chat")
    assert error_of(answer)[:2] == (409, "conflict")
    assert (await database_hop(stored)).name == "chat"
    assert await database_hop(events) == []


async def test_a_model_of_a_remote_server(api: httpx.AsyncClient) -> None:
    await database_hop(lambda: RemoteServerFactory(name="theirs"))
    body = {"name": "far", "remote": "theirs", "remote_model": "big", "max_model_len": 8192}
    made = await api.post("/deployments", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["desired"]["remote"] == "theirs"
    assert "sk-remote-secret" not in made.text
    unknown = await api.patch("/deployments/far", json={"remote": "nobodys"})
    assert error_of(unknown) == (400, "invalid_value", "remote")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"name": "two words"}, 400, "invalid_value", "name"),
        ({"name": None}, 400, "invalid_type", "name"),
        ({"name": "taken"}, 409, "already_exists", "name"),
        ({"model_version": "smollm2:9"}, 400, "invalid_value", "model_version"),
        ({"model_version": "nothing"}, 400, "invalid_value", "model_version"),
        ({"model_version": "a\0b"}, 400, "invalid_value", "model_version"),
        ({"model_version": None}, 400, "invalid_value", "model_version"),
        ({"min_replicas": 0}, 400, "invalid_value", "min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, 400, "invalid_value", "max_replicas"),
        ({"max_replicas": 17}, 400, "invalid_value", "max_replicas"),
        ({"dtype": "int4"}, 400, "invalid_value", "dtype"),
        ({"backend": "vllm"}, 400, "invalid_value", "backend"),
        ({"backend": "nanovllm", "device_class": "cuda"}, 400, "invalid_value", "backend"),
        ({"kv_cache_tokens": 10**30}, 400, "invalid_value", "kv_cache_tokens"),
        ({"kv_cache_tokens": "many"}, 400, "invalid_type", "kv_cache_tokens"),
        ({"max_model_len": 8192}, 400, "invalid_value", "max_model_len"),
        ({"n_replicas": 2}, 400, "unknown_parameter", "n_replicas"),
    ],
)
async def test_a_wrong_deployment_is_refused_by_its_field(
    api: httpx.AsyncClient,
    version: Any,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    await database_hop(lambda: DeploymentFactory(name="taken"))
    answer = await api.post("/deployments", json={**NEW, **change})
    assert error_of(answer) == (status, code, param)
    assert await database_hop(Deployment.objects.count) == 1
    assert await database_hop(events) == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("limit=%D9%A1", "limit"),
     ("after=%00", "after"), ("before=a", "before")],
)  # fmt: skip
async def test_a_wrong_query_is_refused_by_its_field(
    api: httpx.AsyncClient, query: str, param: str
) -> None:
    answer = await api.get(f"/deployments?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["nothing", "%00", "a" * 2000, "%F0%9F%98%80", "-1"])
async def test_what_is_not_there_is_404(api: httpx.AsyncClient, name: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"max_replicas": 2}),
        ("DELETE", "", None),
        ("POST", "/start", None),
    ):
        answer = await api.request(method, f"/deployments/{name}{path}", json=body)
        assert answer.status_code == 404, (method, answer.text)
    wrong = await api.put(f"/deployments/{name}", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, PATCH, DELETE")


# -- one deployment that was given to somebody ----------------------------------------------------


async def test_who_was_given_one_deployment_sees_and_changes_that_one(
    anybody: httpx.AsyncClient,
) -> None:
    def give() -> Any:
        token = manager()
        DeploymentFactory(name="other")
        mine = DeploymentFactory(name="mine")
        assign_perm("deployments.change_deployment", token.owner, mine)
        return token

    anybody.headers.update(headers_of(await database_hop(give)))
    assert [each["id"] for each in (await anybody.get("/deployments")).json()["data"]] == ["mine"]
    changed = await anybody.patch("/deployments/mine", json={"max_replicas": 2})
    assert changed.status_code == 200, changed.text
    assert (await anybody.post("/deployments/mine/stop")).status_code == 200
    for method, path, body, expected in (
        ("GET", "/deployments/other", None, 404),
        ("PATCH", "/deployments/other", {"tensor_parallel": 2}, 404),
        ("PATCH", "/deployments/other", {"max_replicas": 2}, 404),
        ("POST", "/deployments/other/stop", None, 404),
        ("DELETE", "/deployments/mine", None, 403),
        ("POST", "/deployments", {"name": "third"}, 403),
        ("PATCH", "/deployments/mine", {"remote_model": "x"}, 403),
    ):
        answer = await anybody.request(method, path, json=body)
        assert answer.status_code == expected, (method, path)
    # Nor does it lead to any other version.
    other = await database_hop(lambda: ModelVersionFactory(model__name="smollm2"))
    for field in ("model_version", "draft_version"):
        switched = await anybody.patch("/deployments/mine", json={field: f"smollm2:{1}"})
        assert error_of(switched) == (400, "invalid_value", field)
    row = await database_hop(stored, "mine")
    assert (row.desired_state, row.max_replicas) == ("stopped", 2)
    assert row.draft_version_id is None
    assert row.model_version_id != other.pk
    assert [action for action, _ in await database_hop(events)] == [
        "deployment.updated",
        "deployment.stopped",
    ]


def test_the_choices_are_those_of_the_rows() -> None:
    for kind, choices in (
        (wire.State, Deployment.DesiredState),
        (wire.DeviceClass, Deployment.DeviceClass),
        (wire.Backend, Deployment.Backend),
        (wire.Dtype, Deployment.Dtype),
        (wire.Quantization, Deployment.Quantization),
        (wire.RemoteTask, Deployment.Task),
    ):
        assert kind.__args__ == tuple(choices.values)
