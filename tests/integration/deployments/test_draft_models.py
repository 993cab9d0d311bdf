"""The draft model of a deployment: what is refused, and what it claims. Who sets it is in
test_draft_model_doors.py."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
from apps.deployments.needs import beside, replica_estimate
from apps.deployments.services import (
    deployment_create,
    deployment_restart,
    deployment_start,
    deployment_update,
)
from apps.engines.models import Device
from apps.registry.exceptions import StageNotDeployable
from apps.registry.models import ModelVersion
from engine_service.__main__ import parse_options
from engine_service.backends.nanovllm.loading import _settled
from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from tests.factories import (
    DeploymentFactory,
    RemoteServerFactory,
)
from tests.integration.deployments.guessing import WORDS, draft, small, target
from tests.integration.deployments.machine import (
    GIB,
    SLEEP,
    TIERS,
    TWO,
    machine,
    reconcile,
    shaped,
)
from tests.rows import all_of

__all__ = ["draft", "machine", "target"]  # fixtures

pytestmark = pytest.mark.django_db


def nothing_changed() -> None:
    assert not Deployment.objects.exists()
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


# -- what is refused -------------------------------------------------------------------------------


def test_other_engines_and_remote_servers_refuse_it(draft: ModelVersion, actor: Actor) -> None:
    qwen3 = shaped(architecture="Qwen3ForCausalLM", vocabulary_sha256=WORDS)
    embedding = shaped(architecture="BertModel", vocabulary_sha256=WORDS)
    far = {"remote": RemoteServerFactory(), "remote_model": "big", "max_model_len": 4096}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model_version": qwen3, "backend": "nanovllm", "device_class": "cuda"}, "nano-vllm"),
        ({"model_version": embedding}, "An embedding model does not have this."),
        (far, "A remote server sees to that itself."),
    )
    for fields, said in cases:
        with pytest.raises(ValidationError) as refusal:
            deployment_create(actor=actor, name="chat", draft_version=draft, **fields)
        assert set(refusal.value.message_dict) == {"draft_version"}
        assert said in refusal.value.messages[0]
        nothing_changed()


def test_what_cannot_guess_for_it_is_refused(target: ModelVersion, actor: Actor) -> None:
    cases: tuple[tuple[ModelVersion, str], ...] = (
        (target, "The model itself is no faster than it is"),
        (small(model__name="vectors", architecture="BertModel"), "vectors v1 makes embeddings"),
        (
            small(model__name="other", vocabulary_sha256="cd" * 32),
            "The tokens of other v1 are not those of large v1",
        ),
        (small(model__name="old", vocabulary_sha256=""), "Nobody knows the tokens of old v1"),
    )
    for version, said in cases:
        with pytest.raises(ValidationError) as refusal:
            deployment_create(actor=actor, name="chat", model_version=target, draft_version=version)
        assert set(refusal.value.message_dict) == {"draft_version"}
        assert said in refusal.value.messages[0]
        nothing_changed()


def test_of_versions_imported_before_their_files_say_it(
    target: ModelVersion, models_dir: Path, actor: Actor
) -> None:
    ModelVersion.objects.update(vocabulary_sha256="")
    target.refresh_from_db()
    old = small(vocabulary_sha256="")
    vocab = {"a": 0, "b": 1}
    for version, said in ((target, vocab), (old, {"b": 0, "a": 1})):
        (models_dir / version.path).mkdir(parents=True)
        text = json.dumps({"model": {"vocab": said}})
        (models_dir / version.path / "tokenizer.json").write_text(text)
    with pytest.raises(ValidationError, match="are not those of large v1"):
        deployment_create(actor=actor, name="chat", model_version=target, draft_version=old)
    nothing_changed()
    reordered = json.dumps({"model": {"vocab": dict(reversed(vocab.items()))}}, indent=1)
    (models_dir / old.path / "tokenizer.json").write_text(reordered)
    deployment_create(actor=actor, name="chat", model_version=target, draft_version=old)


def test_one_file_is_one_vocabulary_wherever_it_is(actor: Actor) -> None:
    """As where files must be fetched, and their versions were imported before this was kept."""
    manifest = {"files": {"tokenizer.json": {"sha256": "ef" * 32, "size_bytes": 7}}}
    both = [shaped(model__name=name, manifest=manifest) for name in ("large", "small")]
    deployment_create(actor=actor, name="chat", model_version=both[0], draft_version=both[1])


def test_a_retired_draft_model_is_not_started(
    target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    without = DeploymentFactory(name="without", model_version=target)
    stopped = DeploymentFactory(
        name="with", model_version=target, draft_version=draft, desired_state="stopped"
    )
    ModelVersion.objects.filter(pk=draft.pk).update(stage="retired")
    before = list(Deployment.objects.order_by("pk").values())
    for act in (
        lambda: deployment_create(
            actor=actor, name="new", model_version=target, draft_version=draft
        ),
        lambda: deployment_update(deployment=without, actor=actor, draft_version=draft),
        lambda: deployment_start(deployment=stopped, actor=actor),
        lambda: deployment_restart(deployment=stopped, actor=actor),
        lambda: deployment_update(deployment=stopped, actor=actor, desired_state="running"),
    ):
        with pytest.raises(StageNotDeployable) as refusal:
            act()
        assert refusal.value.param == "draft_version"
        assert refusal.value.message.startswith("small v1 is retired; a deployment needs")
    assert list(Deployment.objects.order_by("pk").values()) == before
    assert not all_of(AuditEvent).exists()
    deployment_update(deployment=stopped, actor=actor, draft_version=None)
    deployment_start(deployment=stopped, actor=actor)


def test_what_runs_a_retired_model_goes_on_without_its_draft_model(
    target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    deployment = DeploymentFactory(model_version=target, draft_version=draft)
    ModelVersion.objects.update(stage="retired")
    deployment_update(deployment=deployment, actor=actor, draft_version=None)
    assert Deployment.objects.get().draft_version is None


def test_what_goes_with_it_is_what_goes_with_it_in_an_engine(
    target: ModelVersion, draft: ModelVersion
) -> None:
    """Over all that is right without one."""
    target.architecture = "Qwen3ForCausalLM"  # which both backends run
    n_taken = n_refused = 0
    for device, backend, n, sleep, host, disk, quantization in itertools.product(
        ("auto", "cpu", "cuda"), ("native", "nanovllm"), (1, 2), (None, 60), (None, GIB),
        (None, GIB), ("none", "int8"),
    ):  # fmt: skip
        row = Deployment(
            name="chat", model_version=target, device_class=device, backend=backend,
            tensor_parallel=n, sleep_after_s=sleep, host_kv_cache_bytes=host,
            disk_kv_cache_bytes=disk, quantization=quantization,
        )  # fmt: skip
        if refused(row):
            continue
        row.draft_version = draft
        errors = refused(row)
        assert errors in (set(), {"draft_version"})
        assert bool(errors) != engine_takes(row), row.__dict__
        n_taken, n_refused = n_taken + (not errors), n_refused + bool(errors)
    assert (n_taken, n_refused) == (30, 1)  # by nano-vllm


def refused(row: Deployment) -> set[str]:
    try:
        row.clean()
    except ValidationError as error:
        return set(error.message_dict)
    return set()


def engine_takes(row: Deployment) -> bool:
    sizes = {
        "tensor_parallel": row.tensor_parallel,
        "sleep_after_s": row.sleep_after_s,
        "host_kv_cache_bytes": row.host_kv_cache_bytes or 0,
        "disk_kv_cache_bytes": row.disk_kv_cache_bytes or 0,
    }
    try:
        config = EngineConfig(
            model_dir=Path("large"), draft_model_dir=Path("small"), device=row.device_class,
            backend=row.backend, quantization=row.quantization,
            kv_cache_dir=Path("kv") if row.disk_kv_cache_bytes else None, **sizes,
        )  # fmt: skip
        if row.backend == "nanovllm":
            _settled(config)
    except ModelError:
        return False
    return True


def test_the_database_holds_what_is_never_right(target: ModelVersion, draft: ModelVersion) -> None:
    DeploymentFactory(model_version=target, draft_version=draft)
    rows = Deployment.objects.all()
    for wrong in (
        {"backend": "nanovllm"},
        {"draft_version": target},
        {"model_version": None, "remote": RemoteServerFactory()},
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            rows.update(**wrong)
    assert rows.get().draft_version == draft
    rows.update(sleep_after_s=60, tensor_parallel=2, host_kv_cache_bytes=GIB)
    rows.update(draft_version=None, backend="nanovllm")


# -- what it claims, and what an engine is told ----------------------------------------------------


def test_its_memory_is_in_the_sum(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    fields = {"model_version": target, "device_class": "cuda", "quantization": "int8"}
    deployment = deployment_create(actor=actor, name="chat", **fields)
    reconcile(machine)
    without = Replica.objects.get()
    assert without.estimated_bytes is not None
    assert without.lasting_bytes is not None
    deployment_update(deployment=deployment, actor=actor, draft_version=draft)
    reconcile(machine)
    replica = Replica.objects.get()
    # Not quantised; K and V of as many tokens; steps as many rows wide as the large one's.
    products = 2 * ((2 + 2 * 2) * 64 * 128 + 2 * 64 * 128 + 3 * 256 * 128)
    weights = 2 * (products + 2 * 1024 * 128)
    kv_cache = 2 * 2 * 2 * 64 * 2 * 32768
    steps = 4 * (512 * 4 * (128 + 2 * 64 + 256) + 64 * 1024 * 4)
    loading = 2 * products
    assert replica.lasting_bytes == without.lasting_bytes + weights + kv_cache
    assert replica.estimated_bytes == without.estimated_bytes + weights + kv_cache + steps + loading


def test_each_device_of_a_replica_has_room_for_the_whole_of_it(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    """The first one has it, and its engine's KV cache is on all as large as there."""
    deployment = deployment_create(actor=actor, name="chat", model_version=target, **TWO)
    alone = replica_estimate(deployment, devices=Device.objects.all())
    deployment_update(deployment=deployment, actor=actor, draft_version=draft)
    (spec,) = reconcile(machine).specs
    assert {"--draft-model", "--tensor-parallel"} <= set(spec.arguments)
    guessing = DeploymentFactory.build(model_version=draft, device_class="cuda")
    whole = replica_estimate(guessing, devices=Device.objects.all())
    replica = Replica.objects.get()
    assert replica.devices.count() == 2
    assert replica.estimated_bytes == alone.total + whole.total - whole.runtime


@pytest.mark.parametrize("devices", [{}, TWO], ids=len)
def test_the_host_keeps_its_weights_too_while_both_sleep(
    machine: Device,
    target: ModelVersion,
    draft: ModelVersion,
    actor: Actor,
    devices: dict[str, Any],
) -> None:
    """Once, also where several devices hold the large one."""
    fields = {**SLEEP, **devices}
    deployment = deployment_create(actor=actor, name="chat", model_version=target, **fields)
    alone = beside(deployment, devices=Device.objects.all())["cpu"]
    deployment = deployment_update(deployment=deployment, actor=actor, draft_version=draft)
    parts = replica_estimate(deployment, devices=Device.objects.all())
    assert parts.draft is not None
    assert beside(deployment, devices=Device.objects.all())["cpu"] == alone + parts.draft.weights
    (spec,) = reconcile(machine).specs
    assert {"--draft-model", "--sleep-after-s"} <= set(spec.arguments)


def test_caches_below_the_gpu_go_with_it(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    deployment_create(actor=actor, name="chat", model_version=target, draft_version=draft, **TIERS)
    (spec,) = reconcile(machine).specs
    assert {"--draft-model", "--host-kv-cache-bytes"} <= set(spec.arguments)


def test_one_that_is_too_large_beside_its_model_is_refused(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    deployment = deployment_create(
        actor=actor, name="chat", model_version=target, device_class="cuda"
    )
    large = small(model__name="larger", shape={"n_layers": 500})
    with pytest.raises(ValidationError, match="are missing on box/GPU-"):
        deployment_update(deployment=deployment, actor=actor, draft_version=large)
    stored = Deployment.objects.get()
    assert (stored.draft_version, stored.generation) == (None, 1)


def test_an_engine_is_told_where_it_is(
    machine: Device, models_dir: Path, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    deployment = deployment_create(
        actor=actor, name="chat", model_version=target, draft_version=draft, device_class="cpu"
    )
    (spec,) = reconcile(machine).specs
    assert spec.arguments[:4] == (
        *("--model", str(models_dir / target.path)),
        *("--draft-model", str(models_dir / draft.path)),
    )
    assert spec.artifacts == ()
    told = parse_options((*spec.arguments, "--socket", "s", "--epoch", "1")).engine
    assert told.draft_model_dir == models_dir / draft.path
    deployment_update(deployment=deployment, actor=actor, draft_version=None)
    (after,) = reconcile(machine).specs
    assert "--draft-model" not in after.arguments
    assert (spec.revision, after.revision) == (1, 2)
    changes = [event.changes for event in all_of(AuditEvent).order_by("id")]
    assert changes[0]["draft_version"] == "small v1"
    assert changes[1] == {"draft_version": ["small v1", None]}
