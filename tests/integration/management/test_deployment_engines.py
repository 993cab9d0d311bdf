"""Several devices, sleep and memory tiers of a deployment through the management API."""

from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from tests.factories import DeploymentFactory, DeviceFactory, ModelVersionFactory, ReplicaFactory
from tests.integration.management.conftest import error_of, events

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
    assert replica["is_asleep"]


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
    }
    changed = await api.patch("/deployments/chat", json=options)
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()["desired"][name] for name in options} == options
    nothing = dict.fromkeys(options, None) | {"tensor_parallel": 8}
    again = await api.patch("/deployments/chat", json=nothing)
    assert {name: again.json()["desired"][name] for name in options} == nothing
    row = await database_hop(stored)
    assert (row.tensor_parallel, row.sleep_after_s, row.generation) == (8, None, 3)
    wrong = await api.patch("/deployments/chat", json={"sleep_after_s": 60})
    assert error_of(wrong) == (400, "invalid_value", "sleep_after_s")
    assert (await database_hop(stored)).generation == 3


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
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
