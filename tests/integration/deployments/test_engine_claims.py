"""What several devices, sleep and memory tiers claim of a machine, and what an engine is told."""

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.template.defaultfilters import filesizeformat
from django.utils import timezone

from apps.audit.types import Actor
from apps.deployments.models import Deployment, Replica
from apps.deployments.needs import replica_estimate
from apps.deployments.placing import needs_text
from apps.deployments.services import (
    deployment_create,
    deployment_delete,
    deployment_restart,
    deployment_update,
)
from apps.engines.models import Device, EngineProcess
from apps.engines.selectors import reserved_of
from engine_service.__main__ import parse_options
from tests.integration.deployments.machine import (
    GIB,
    MIB,
    SLEEP,
    TIERS,
    TWO,
    machine,
    reconcile,
    shaped,
)

__all__ = ["machine"]  # a fixture

pytestmark = pytest.mark.django_db


def test_a_replica_of_two_gets_both_or_nothing(machine: Device, actor: Actor) -> None:
    deployment_create(actor=actor, name="wide", model_version=shaped(), **TWO)
    (spec,) = reconcile(machine).specs
    assert spec.environment == (("CUDA_VISIBLE_DEVICES", "GPU-0,GPU-1"),)
    assert spec.arguments[-2:] == ("--tensor-parallel", "2")
    assert "--kernels" not in spec.arguments
    replica = Replica.objects.get()
    assert replica.devices_said == "box/GPU-0, box/GPU-1"
    # Half of the products and of the head, the embedding whole, half of the K/V heads.
    products = 8 * (256 + 2 * 128) * 512 + 8 * 256 * 512 + 8 * 3 * 768 * 512
    weights, kv_cache = 2 * (products + (1024 + 512) * 512), 2 * 8 * 2 * 64 * 2 * 32768
    assert replica.lasting_bytes == weights + kv_cache
    assert replica.estimated_bytes is not None
    assert replica.estimated_bytes > weights + kv_cache + 1024 * MIB

    Device.objects.filter(uid="GPU-1").update(free_bytes=100 * MIB)
    assert [each.name for each in reconcile(machine, occupied={spec.process_id}).specs] == [
        "wide-0"
    ]  # it runs
    assert reconcile(machine).specs == ()
    refused = Replica.objects.get()
    assert not refused.devices.exists()
    assert "on each of 2 devices, and" in refused.refusal
    assert refused.refusal.count("missing on box/GPU-1") == 1
    assert "GPU-0" not in refused.refusal


def test_all_of_its_devices_are_reserved_while_it_starts(machine: Device, actor: Actor) -> None:
    wide = shaped(n_parameters=10**9)
    sizes = {"kv_cache_tokens": 700_000, "max_model_len": 4096}  # 5.3 GiB, or 2.7 on each
    deployment_create(actor=actor, name="wide", model_version=wide, **TWO, **sizes)
    (first,) = reconcile(machine).specs
    with pytest.raises(ValidationError, match=r"single needs .* are missing on box/GPU-0"):
        deployment_create(
            actor=actor, name="single", model_version=shaped(), device_class="cuda", **sizes
        )
    assert not Deployment.objects.filter(name="single").exists()
    Deployment.objects.update(desired_state="stopped")
    assert reconcile(machine, occupied={first.process_id}).specs == ()
    deployment_create(
        actor=actor, name="single", model_version=shaped(), device_class="cuda", **sizes
    )
    assert len(reconcile(machine).specs) == 1


def test_more_devices_than_a_machine_has_are_refused(machine: Device, actor: Actor) -> None:
    with pytest.raises(ValidationError, match="and no machine has 4 GPUs for it"):
        deployment_create(
            actor=actor, name="wide", model_version=shaped(), **{**TWO, "tensor_parallel": 4}
        )
    assert not Deployment.objects.exists()


def test_tiers_are_told_and_kept_free_beside_the_gpu(
    machine: Device, actor: Actor, settings: Any, tmp_path: Path
) -> None:
    settings.VAR_DIR = tmp_path / "var"
    deployment_create(actor=actor, name="deep", model_version=shaped(), **TIERS, max_replicas=3)
    (spec,) = reconcile(machine).specs
    told = parse_options((*spec.arguments, "--socket", "s", "--epoch", "1")).engine
    assert (told.host_kv_cache_bytes, told.disk_kv_cache_bytes) == (4 * GIB, 8 * GIB)
    assert told.kv_cache_dir == tmp_path / "var" / "kv-cache"
    assert not (tmp_path / "var").exists()
    deployment = Deployment.objects.get()
    with pytest.raises(ValidationError, match=r"beside that .*4\.0.*GB of it .* on box/disk"):
        deployment_update(deployment=deployment, actor=actor, min_replicas=3)
    Device.objects.filter(kind="disk").update(free_bytes=90 * GIB)
    Device.objects.filter(kind="cpu").update(free_bytes=11 * GIB)
    with pytest.raises(ValidationError, match=r"1\.0.*GB of it .* are missing on box/cpu"):
        deployment_update(deployment=deployment, actor=actor, min_replicas=3)
    assert Deployment.objects.get().min_replicas == 1
    # What runs there holds some of it already.
    EngineProcess.objects.update(
        state="ready", pid=1, info={"dtype": "bfloat16"},
        stats={"tiers": {"host_bytes_total": 2 * GIB, "disk_bytes": 0}},
    )  # fmt: skip
    deployment_update(deployment=deployment, actor=actor, min_replicas=3)


def test_what_no_machine_is_known_to_have_is_said(machine: Device, actor: Actor) -> None:
    """Such as the disk, where an older agent looks at a machine."""
    Device.objects.filter(kind="disk").delete()
    with pytest.raises(ValidationError, match="no machine has a GPU for it and all of that"):
        deployment_create(actor=actor, name="deep", model_version=shaped(), **TIERS)
    assert not Deployment.objects.exists()
    deployment_create(actor=actor, name="plain", model_version=shaped(), device_class="cuda")


def test_those_that_sleep_share_a_gpu_and_need_their_weights_on_the_host(
    machine: Device, actor: Actor
) -> None:
    sizes = {"kv_cache_tokens": 700_000, "max_model_len": 4096}  # 5.3 GiB of 7.2
    model = shaped()
    for name in ("a", "b"):
        deployment_create(actor=actor, name=name, model_version=model, **SLEEP, **sizes)
    found = reconcile(machine)
    assert found.specs[0].arguments[-2:] == ("--sleep-after-s", "300")
    assert parse_options((*found.specs[0].arguments, "--socket", "s", "--epoch", "1"))
    gpus = {replica.devices.get().uid: replica for replica in Replica.objects.all()}
    assert set(gpus) == {"GPU-0", "GPU-1"}, "each has one of its own while there is"
    asleep = {"stats": {"is_asleep": True}, "ready_at": timezone.now()}
    EngineProcess.objects.update(state="ready", pid=1, info={"dtype": "bfloat16"}, **asleep)
    # Both GPUs look free, and neither is: whoever sleeps there may wake.
    with pytest.raises(ValidationError, match="are missing on box/GPU"):
        deployment_create(actor=actor, name="c", model_version=model, device_class="cuda", **sizes)
    assert Deployment.objects.count() == 2
    c = deployment_create(actor=actor, name="c", model_version=model, **SLEEP, **sizes)
    occupied = {each.process_id for each in found.specs}
    sharing = reconcile(machine, occupied=occupied).sharing
    third = Replica.objects.get(deployment=c)
    gpu = third.devices.get()
    assert third.estimated_bytes is not None
    awake_bytes = third.estimated_bytes - 512 * MIB
    share = sharing.shares[third.engine_process_id]
    assert (share.device_ids, share.n_bytes, share.sleeps) == ((gpu.pk,), awake_bytes, True)
    room = 8 * GIB - 8 * GIB // 10
    assert sharing.room_bytes[gpu.pk] == room - 2 * 512 * MIB
    reserved = reserved_of(gpu)
    assert (reserved.own_bytes, reserved.n_sharing) == (2 * 512 * MIB, 2)
    assert reserved.shared_bytes == awake_bytes
    said = needs_text(c, now=timezone.now())
    assert "512.0\xa0MB of it while it sleeps, and the rest is shared" in said
    deployment_delete(deployment=c, actor=actor)
    Device.objects.filter(kind="cpu").update(free_bytes=1)
    with pytest.raises(ValidationError, match=r"of host memory, and .* are missing on box/cpu"):
        deployment_create(actor=actor, name="d", model_version=model, **SLEEP)
    assert Deployment.objects.count() == 2
    # What those that slept keep of the host is taken, and not kept free for them once more.
    weights = replica_estimate(Deployment.objects.first(), devices=[machine]).weights
    Device.objects.filter(kind="cpu").update(free_bytes=weights)
    EngineProcess.objects.update(stats={"is_asleep": True, "saved_bytes": weights})
    deployment_create(actor=actor, name="d", model_version=model, **SLEEP)


def test_sleepers_of_two_gpus_share_both_and_the_host_has_the_weights_of_all_parts(
    machine: Device, actor: Actor
) -> None:
    sizes = {"kv_cache_tokens": 1_200_000, "max_model_len": 4096}  # 4.6 GiB of 7.2 on each
    fields = {**TWO, **SLEEP, "host_kv_cache_bytes": 4 * GIB, **sizes}
    model = shaped()
    first = deployment_create(actor=actor, name="a", model_version=model, **fields)
    devices = [*Device.objects.all()]
    beside_it = 4 * GIB + 2 * replica_estimate(first, devices=devices).weights
    said = needs_text(first, now=timezone.now())
    assert "1.0\xa0GB of it while it sleeps, and the rest is shared by those that sleep on" in said
    assert f"and beside that {filesizeformat(beside_it)} of host memory" in said
    Device.objects.filter(kind="cpu").update(free_bytes=beside_it - 1)
    refused = reconcile(machine)
    assert refused.specs == ()
    assert Replica.objects.get().refusal.count("(1 bytes) are missing on box/cpu") == 1
    Device.objects.filter(kind="cpu").update(free_bytes=3 * beside_it)
    deployment_create(actor=actor, name="b", model_version=model, **fields)
    single = {**SLEEP, "kv_cache_tokens": 300_000, "max_model_len": 4096}
    deployment_create(actor=actor, name="c", model_version=model, **single)
    sharing = reconcile(machine).sharing
    gpus = tuple(Device.objects.filter(kind="cuda").order_by("pk").values_list("pk", flat=True))
    shares = {
        replica.deployment.name: sharing.shares[replica.engine_process_id]
        for replica in Replica.objects.select_related("deployment")
    }
    assert shares["a"].device_ids == shares["b"].device_ids == gpus
    assert len(shares["c"].device_ids) == 1
    for gpu in gpus:
        kept = 2 * GIB + 512 * MIB * (gpu in shares["c"].device_ids)
        assert sharing.room_bytes[gpu] == 8 * GIB - 8 * GIB // 10 - kept
        assert max(each.n_bytes for each in shares.values()) <= sharing.room_bytes[gpu]


def test_what_an_engine_has_of_a_gpu_is_not_reserved_twice(machine: Device, actor: Actor) -> None:
    """It is in what is not free any more; what it holds of the host does not count for it."""
    Device.objects.filter(uid="GPU-1").delete()
    fields = {"model_version": shaped(), "device_class": "cuda", "max_model_len": 4096}
    first = deployment_create(actor=actor, name="a", kv_cache_tokens=250_000, **fields)
    (spec,) = reconcile(machine).specs
    lasting = Replica.objects.get().lasting_bytes
    assert lasting is not None
    Device.objects.filter(uid="GPU-0").update(free_bytes=8 * GIB - lasting)
    ready = {"state": "ready", "pid": 1, "info": {"dtype": "bfloat16"}}
    EngineProcess.objects.update(
        **ready, ready_at=timezone.now(), stats={"rss_bytes": 8 * GIB, "is_asleep": False}
    )

    def create() -> None:
        deployment_create(actor=actor, name="b", kv_cache_tokens=250_000, **fields)

    # Its GPU was last looked at before it was ready: nobody knows yet what it took.
    with pytest.raises(ValidationError, match="GPU-0"):
        create()
    node = machine.node
    node.seen_at = timezone.now()
    node.save()
    create()
    # Nor is it replaced in vain: its successor has what it gives back.
    deployment_restart(deployment=first, actor=actor)
    occupied = {spec.process_id}
    assert [each.name for each in reconcile(machine, occupied=occupied).specs] == ["a-0", "b-0"]


def test_a_processor_shares_its_cores_and_memory_among_the_parts(
    machine: Device, actor: Actor
) -> None:
    alone = deployment_create(
        actor=actor, name="alone", model_version=shaped(), device_class="cpu", dtype="float32"
    )
    two = deployment_create(
        actor=actor, name="parts", model_version=shaped(), device_class="cpu", tensor_parallel=2
    )
    found = {spec.name: spec for spec in reconcile(machine).specs}
    arguments = found["parts-0"].arguments
    assert arguments[-6:] == ("--threads", "4", "--tensor-parallel", "2", "--kernels", "torch")
    assert found["parts-0"].environment == (("CUDA_VISIBLE_DEVICES", ""),)
    whole = Replica.objects.get(deployment=alone).estimated_bytes
    parts = Replica.objects.get(deployment=two)
    assert parts.devices_said == "box/cpu"
    # Two of half the size, each with the embedding, the head and a process of its own.
    assert whole is not None
    assert parts.estimated_bytes is not None
    assert whole < parts.estimated_bytes < 2 * whole
