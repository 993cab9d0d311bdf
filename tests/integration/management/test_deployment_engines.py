"""Cache, guesses, attention, draft model, several devices, sleep and memory tiers of a deployment
through the management API."""

from typing import Any

import httpx
import pytest
from guardian.shortcuts import assign_perm

from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from tests.factories import DeploymentFactory, DeviceFactory, ModelVersionFactory, ReplicaFactory
from tests.integration.management.conftest import error_of, events, headers_of, manager

NEW = {"name": "chat", "model_version": "smollm2:1", "kv_cache_tokens": 4096}


def stored() -> Deployment:
    return Deployment.objects.get(name="chat")


async def test_one_on_several_devices_says_which_and_that_it_sleeps(
    api: httpx.AsyncClient,
) -> None:
    def run() -> None:
        first = DeviceFactory(node__name="a", kind="cuda", uid="GPU-0")
        second = DeviceFactory(node=first.node, kind="cuda", uid="GPU-1", index=1)
        replica = ReplicaFactory(index=0, deployment__name="chat", devices=[second, first])
        replica.engine_process.stats = {"is_asleep": True}
        replica.engine_process.save()

    await database_hop(run)
    (replica,) = (await api.get("/deployments/chat")).json()["observed"]["replicas"]
    assert (replica["device"], replica["devices"]) == ("a/GPU-0", ["a/GPU-0", "a/GPU-1"])
    assert (replica["is_asleep"], replica["waits_for_memory"]) == (True, False)
    assert replica["asleep_bytes"] is None


async def test_one_that_shares_its_gpu_says_how_much_and_that_it_waits(
    api: httpx.AsyncClient,
) -> None:
    def run() -> None:
        gpu = DeviceFactory(node__name="a", kind="cuda", uid="GPU-0")
        deployment = DeploymentFactory(name="chat", device_class="cuda", sleep_after_s=60)
        replica = ReplicaFactory(index=0, deployment=deployment, devices=[gpu])
        replica.engine_process.state = "ready"
        replica.engine_process.stats = {"is_asleep": True, "waits_for_memory": True}
        replica.engine_process.save()

    await database_hop(run)
    observed = (await api.get("/deployments/chat")).json()["observed"]
    assert observed["state"] == "waiting_for_memory"
    (replica,) = observed["replicas"]
    assert (replica["state"], replica["is_asleep"], replica["waits_for_memory"]) == (
        "ready",
        True,
        True,
    )
    assert replica["asleep_bytes"] == 512 * 2**20


async def test_how_its_engines_run_is_set_and_taken_away(api: httpx.AsyncClient) -> None:
    shape = dict.fromkeys(
        ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size"), 8
    )

    def make() -> None:
        version = ModelVersionFactory(shape={**shape, "vocab_size": 8})
        DeploymentFactory(name="chat", device_class="cuda", model_version=version)

    await database_hop(make)
    options = {
        "sleep_after_s": 60,
        "host_kv_cache_bytes": 2**33,
        "disk_kv_cache_bytes": 2**34,
        "tensor_parallel": 1,
        "kv_cache_dtype": "fp8",
        "speculation": "off",
        "attention": "flashinfer",
    }
    changed = await api.patch("/deployments/chat", json=options)
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()["desired"][name] for name in options} == options
    words = dict.fromkeys(("kv_cache_dtype", "speculation", "attention"), "auto")
    nothing = dict.fromkeys(options, None) | {"tensor_parallel": 8} | words
    again = await api.patch("/deployments/chat", json=nothing)
    assert {name: again.json()["desired"][name] for name in options} == nothing
    row = await database_hop(stored)
    assert (row.tensor_parallel, row.sleep_after_s, row.generation) == (8, None, 3)
    off_gpu = {"sleep_after_s": 60, "device_class": "cpu"}
    wrong = await api.patch("/deployments/chat", json=off_gpu)
    assert error_of(wrong) == (400, "invalid_value", "sleep_after_s")
    assert (await database_hop(stored)).generation == 3


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"kv_cache_dtype": "int8"}, 400, "invalid_value", "kv_cache_dtype"),
        ({"kv_cache_dtype": None}, 400, "invalid_type", "kv_cache_dtype"),
        ({"kv_cache_dtype": "fp8"}, 400, "invalid_value", "kv_cache_dtype"),
        ({"speculation": "on"}, 400, "invalid_value", "speculation"),
        ({"speculation": True}, 400, "invalid_type", "speculation"),
        ({"attention": "flash"}, 400, "invalid_value", "attention"),
        ({"attention": "triton"}, 400, "invalid_value", "attention"),
        (
            {"device_class": "cuda", "attention": "flash-attn", "dtype": "float32"},
            400,
            "invalid_value",
            "attention",
        ),
        ({"tensor_parallel": 9}, 400, "invalid_value", "tensor_parallel"),
        ({"tensor_parallel": None}, 400, "invalid_type", "tensor_parallel"),
        ({"tensor_parallel": 2}, 400, "invalid_value", "tensor_parallel"),
        ({"sleep_after_s": 0}, 400, "invalid_value", "sleep_after_s"),
        ({"sleep_after_s": "long"}, 400, "invalid_type", "sleep_after_s"),
        ({"sleep_after_s": 60}, 400, "invalid_value", "sleep_after_s"),
        ({"host_kv_cache_bytes": 2**51}, 400, "invalid_value", "host_kv_cache_bytes"),
        (
            {"device_class": "cuda", "disk_kv_cache_bytes": 2**30},
            400,
            "invalid_value",
            "disk_kv_cache_bytes",
        ),
    ],
)
async def test_what_is_wrong_is_refused_by_its_field(
    api: httpx.AsyncClient, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    await database_hop(lambda: ModelVersionFactory(model__name="smollm2"))
    answer = await api.post("/deployments", json={**NEW, **change})
    assert error_of(answer) == (status, code, param)
    assert not await database_hop(Deployment.objects.exists)
    assert await database_hop(events) == []


async def test_a_draft_model_is_set_shown_and_taken_away(api: httpx.AsyncClient) -> None:
    def make() -> None:
        same = {"vocabulary_sha256": "ab" * 32}
        target = ModelVersionFactory(model__name="large", **same)
        DeploymentFactory(name="chat", model_version=target)
        small = ModelVersionFactory(model__name="small", **same)
        ModelVersionFactory(model=small.model, version=2, stage="retired", **same)
        ModelVersionFactory(model__name="other", vocabulary_sha256="cd" * 32)

    await database_hop(make)
    changed = await api.patch("/deployments/chat", json={"draft_version": "small:1"})
    assert changed.status_code == 200, changed.text
    assert changed.json()["desired"]["draft_version"] == "small:1"
    assert (await api.get("/deployments")).json()["data"] == [changed.json()]
    for wrong, status, code in (
        ("small", 409, "stage_not_deployable"),  # its newest version is retired
        ("other", 400, "invalid_value"),
        ("large:1", 400, "invalid_value"),
        ("nothing", 400, "invalid_value"),
        (1, 400, "invalid_type"),
    ):
        answer = await api.patch("/deployments/chat", json={"draft_version": wrong})
        assert error_of(answer) == (status, code, "draft_version"), answer.text
    guess = await api.patch("/deployments/chat", json={"speculation": "off"})
    assert error_of(guess) == (400, "invalid_value", "speculation")
    assert (await database_hop(stored)).generation == 2
    taken = await api.patch("/deployments/chat", json={"draft_version": None})
    assert taken.json()["desired"]["draft_version"] is None
    assert (await database_hop(stored)).generation == 3
    assert await database_hop(events) == [("deployment.updated", "token")] * 2


async def test_one_that_is_there_stays_for_who_sees_no_version(anybody: httpx.AsyncClient) -> None:
    """Who was given a deployment may send back what they read of it."""

    def give() -> Any:
        same = {"vocabulary_sha256": "ab" * 32}
        mine = DeploymentFactory(
            name="mine",
            model_version=ModelVersionFactory(model__name="large", **same),
            draft_version=ModelVersionFactory(model__name="small", **same),
        )
        ModelVersionFactory(model__name="other", **same)
        token = manager()
        assign_perm("deployments.change_deployment", token.owner, mine)
        return token

    anybody.headers.update(headers_of(await database_hop(give)))
    kept = await anybody.patch(
        "/deployments/mine", json={"draft_version": "small:1", "max_replicas": 2}
    )
    assert kept.status_code == 200, kept.text
    other = await anybody.patch("/deployments/mine", json={"draft_version": "other:1"})
    assert error_of(other) == (400, "invalid_value", "draft_version")
    assert kept.json()["desired"]["draft_version"] == "small:1"
    row = await database_hop(lambda: Deployment.objects.get(name="mine"))
    assert (row.max_replicas, row.generation) == (2, 1)
