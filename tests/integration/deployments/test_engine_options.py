"""Several devices, sleep and memory tiers of a deployment: what is refused and by which field, who
sets them and where they are seen. What they claim is in test_engine_claims.py."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.engine_options import wrong_options
from apps.deployments.models import Deployment, Replica
from apps.deployments.services import (
    deployment_create,
    deployment_update,
)
from apps.engines.models import Device, EngineProcess
from engine_service.__main__ import parse_options
from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.kernels.quantization import GROUP
from engine_service.models.shard import Shard
from engine_service.rotary import RotaryConfig
from engine_service.runner.device_model import PoolShape
from engine_service.runner.kv_disk import TAG_BYTES
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    RemoteServerFactory,
    ReplicaFactory,
)
from tests.integration.console.pages import staff
from tests.integration.deployments.machine import (
    BLOCK,
    GIB,
    SHAPE,
    SLEEP,
    TIERS,
    TWO,
    machine,
    reconcile,
    shaped,
)
from tests.integration.deployments.test_admin import form
from tests.migrating import migrated_back
from tests.rows import all_of

__all__ = ["machine"]  # a fixture

pytestmark = pytest.mark.django_db


TIERS_ONLY = {name: value for name, value in TIERS.items() if name != "device_class"}


def nothing_changed() -> None:
    assert not Deployment.objects.exists()
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


# -- what is refused, by field ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel", "greater than or equal to 1"),
        ({"tensor_parallel": 9}, "tensor_parallel", "less than or equal to 8"),
        ({**TWO, "device_class": "auto"}, "tensor_parallel", "say that it runs on one"),
        ({**TWO, "tensor_parallel": 3}, "tensor_parallel", "8 attention heads cannot be divided"),
        ({"sleep_after_s": 0}, "sleep_after_s", "greater than or equal to 1"),
        ({**SLEEP, "device_class": "auto"}, "sleep_after_s", "needs a GPU"),
        ({**SLEEP, "device_class": "cpu"}, "sleep_after_s", "needs a GPU"),
        ({**SLEEP, **TWO, "device_class": "cpu"}, "sleep_after_s", "needs a GPU"),
        ({"host_kv_cache_bytes": 2**40, "device_class": "cpu"}, "host_kv_cache_bytes", "a GPU"),
        ({"host_kv_cache_bytes": 2**51, **SLEEP}, "host_kv_cache_bytes", "less than or equal"),
        (
            {**TWO, "host_kv_cache_bytes": 2**30, "device_class": "cpu"},
            "host_kv_cache_bytes",
            "needs a GPU",
        ),
        ({**TIERS, "host_kv_cache_bytes": BLOCK - 1}, "host_kv_cache_bytes", f"{BLOCK:,}: one"),
        ({**TIERS, "disk_kv_cache_bytes": BLOCK}, "disk_kv_cache_bytes", f"{BLOCK + 16:,}: one"),
        ({**TIERS, **TWO, "host_kv_cache_bytes": BLOCK - 1}, "host_kv_cache_bytes", "one block"),
        (
            {**TIERS, **TWO, "disk_kv_cache_bytes": BLOCK + 16},
            "disk_kv_cache_bytes",
            f"{BLOCK + 32:,}: one",
        ),
        ({**TIERS, "host_kv_cache_bytes": None}, "disk_kv_cache_bytes", "through host memory"),
    ],
)
def test_what_an_engine_would_refuse_is_not_saved(
    fields: dict[str, Any], param: str, said: str, actor: Actor
) -> None:
    model = shaped()
    with pytest.raises(ValidationError) as refusal:
        deployment_create(actor=actor, name="chat", model_version=model, **fields)
    assert set(refusal.value.message_dict) == {param}
    assert said in refusal.value.messages[0]
    nothing_changed()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nanovllm", {"architecture": "Qwen3ForCausalLM"}),
        ("embed", {"architecture": "BertModel"}),
    ],
)
@pytest.mark.parametrize("chosen", [TWO, SLEEP, TIERS])
def test_other_engines_refuse_each_by_its_name(
    kind: str, fields: dict[str, Any], chosen: dict[str, Any], actor: Actor
) -> None:
    options = {"backend": kind} if kind == "nanovllm" else {}
    with pytest.raises(ValidationError) as refusal:
        deployment_create(
            actor=actor, name="chat", model_version=shaped(**fields), **options, **chosen
        )
    named = set(refusal.value.message_dict) - {"device_class"}
    assert named == chosen.keys() - {"device_class"}
    nothing_changed()


@pytest.mark.parametrize("chosen", [TWO, SLEEP, TIERS])
def test_a_remote_server_refuses_each_by_its_name(chosen: dict[str, Any], actor: Actor) -> None:
    fields = {name: value for name, value in chosen.items() if name != "device_class"}
    with pytest.raises(ValidationError) as refusal:
        deployment_create(
            actor=actor, name="far", remote=RemoteServerFactory(), remote_model="big",
            max_model_len=4096, **fields,
        )  # fmt: skip
    assert set(refusal.value.message_dict) == fields.keys()
    assert not Deployment.objects.exists()


def test_of_a_model_whose_parts_nobody_knows_nothing_is_promised(actor: Actor) -> None:
    for fields, param in ((TWO, "tensor_parallel"), (TIERS, "host_kv_cache_bytes")):
        with pytest.raises(ValidationError) as refusal:
            deployment_create(
                actor=actor, name="chat", model_version=ModelVersionFactory(), **fields
            )
        assert set(refusal.value.message_dict) == {param}
        assert "Nobody knows" in refusal.value.messages[0]
    nothing_changed()


def test_a_model_is_cut_where_its_engine_cuts_it(actor: Actor) -> None:
    """What is saved is what ``Shard`` takes, over many shapes and sizes."""
    model, n_taken, n_refused = shaped(), 0, 0
    for n in range(2, 9):
        for n_heads, n_kv_heads, inner in (
            (8, 4, 1536), (8, 8, 1536), (8, 1, 1536), (8, 2, 768), (6, 3, 1536), (6, 2, 1536),
            (12, 4, 1536), (7, 7, 1792), (8, 4, 1500), (8, 4, 1600), (5, 1, 1280), (16, 8, 2048),
        ):  # fmt: skip
            for quantization in ("none", "int8", "fp8"):
                changed = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "intermediate_size": inner}
                model.shape = {**SHAPE, **changed, "head_dim": 16}
                draft = Deployment(
                    name="chat", model_version=model, device_class="cuda", tensor_parallel=n,
                    quantization=quantization,
                )  # fmt: skip
                try:
                    draft.clean()
                except ValidationError as error:
                    assert set(error.message_dict) == {"tensor_parallel"}
                    is_saved = False
                else:
                    is_saved = True
                assert is_saved == engine_takes(draft), (n, changed, quantization)
                n_taken, n_refused = n_taken + is_saved, n_refused + (not is_saved)
    assert n_taken > 20 < n_refused


@pytest.mark.parametrize("n_parts", [1, 2, 4, 8])
@pytest.mark.parametrize("n_kv_heads", [1, 4, 8])
def test_the_least_for_a_cache_is_one_block_as_its_engine_has_it(
    n_parts: int, n_kv_heads: int
) -> None:
    draft = Deployment(
        name="chat", model_version=shaped(shape={"n_kv_heads": n_kv_heads}), device_class="cuda",
        tensor_parallel=n_parts,
    )  # fmt: skip
    part = Shard(0, n_parts).of(model_config(draft))
    pool = PoolShape(
        n_layers=part.n_layers, n_blocks=1, block_size=16, n_kv_heads=part.n_kv_heads,
        head_dim=part.head_dim,
    )  # fmt: skip
    least = n_parts * pool.n_numbers_per_block * 2
    for short, wrong in ((0, set()), (1, {"host_kv_cache_bytes", "disk_kv_cache_bytes"})):
        draft.host_kv_cache_bytes = least - short
        draft.disk_kv_cache_bytes = least + n_parts * TAG_BYTES - short
        assert wrong_options(draft).keys() == wrong


def test_sleep_and_caches_go_with_several_devices(machine: Device, actor: Actor) -> None:
    deployment_create(actor=actor, name="chat", model_version=shaped(), **{**TWO, **SLEEP, **TIERS})
    (spec,) = reconcile(machine).specs
    told = parse_options((*spec.arguments, "--socket", "s", "--epoch", "1")).engine
    assert (told.tensor_parallel, told.sleep_after_s) == (2, 300.0)
    assert (told.host_kv_cache_bytes, told.disk_kv_cache_bytes) == (4 * GIB, 8 * GIB)


def model_config(draft: Deployment) -> ModelConfig:
    assert draft.model_version is not None
    return ModelConfig(
        architecture="LlamaForCausalLM", rms_norm_eps=1e-5, rotary=RotaryConfig(theta=10_000.0),
        context_length=512, sliding_window=None, tie_word_embeddings=True,
        eos_token_ids=frozenset({2}), **draft.model_version.shape,
    )  # fmt: skip


def engine_takes(draft: Deployment) -> bool:
    config = model_config(draft)
    shard = Shard(0, draft.tensor_parallel)
    try:
        shard.check(config)
        if draft.quantization == "int8":
            shard.check_groups(config, group=GROUP)
    except ModelError:
        return False
    return True


def test_the_database_holds_what_is_never_right() -> None:
    deployment = DeploymentFactory()
    rows = Deployment.objects.filter(pk=deployment.pk)
    for wrong in ({"tensor_parallel": 9}, {"tensor_parallel": 0}, {"disk_kv_cache_bytes": GIB}):
        with pytest.raises(IntegrityError), transaction.atomic():
            rows.update(**wrong)
    assert rows.get().tensor_parallel == 1


def test_a_row_that_an_older_server_writes_has_one_device() -> None:
    """While servers of two versions run, the older one knows nothing of the column."""
    with connection.cursor() as cursor:
        columns = connection.introspection.get_table_description(cursor, "deployments_deployment")
    (column,) = [each for each in columns if each.name == "tensor_parallel"]
    assert "1" in str(column.default)


# -- who sets them, and where they are seen --------------------------------------------------------


def test_a_change_is_audited_and_replaces_the_engine(machine: Device, actor: Actor) -> None:
    deployment = deployment_create(
        actor=actor, name="chat", model_version=shaped(), device_class="cuda"
    )
    changes: tuple[dict[str, Any], ...] = (
        {"sleep_after_s": 60},
        {"host_kv_cache_bytes": GIB},
        {"disk_kv_cache_bytes": GIB},
        {"disk_kv_cache_bytes": None, "host_kv_cache_bytes": None, "sleep_after_s": None},
        {"tensor_parallel": 2},
    )
    for n, change in enumerate(changes, start=2):
        deployment_update(deployment=deployment, actor=actor, **change)
        assert Deployment.objects.get().generation == n
    last = all_of(AuditEvent).order_by("id").last()
    assert last is not None
    assert (last.action, last.changes) == ("deployment.updated", {"tensor_parallel": [1, 2]})


def test_the_page_sets_and_shows_them(machine: Device, admin_client: Client) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    assert "<details>" in admin_client.get(url).content.decode()
    wrong = admin_client.post(url, form(deployment, tensor_parallel=3))
    assert wrong.status_code == 200
    assert "<details>" not in wrong.content.decode(), "what is wrong is folded away"
    assert "cannot be divided by 3" in wrong.content.decode()
    assert Deployment.objects.get().tensor_parallel == 1
    answer = admin_client.post(url, form(deployment, tensor_parallel=2))
    assert answer.status_code == 302, answer.context["errors"]
    reconcile(machine)
    html = admin_client.get(url).content.decode()
    assert "box/GPU-0, box/GPU-1" in html
    assert "on each of 2 devices:" in html
    listed = admin_client.get(reverse("admin:deployments_replica_changelist")).content.decode()
    assert "box/GPU-0, box/GPU-1" in listed
    engine = reverse("admin:engines_engineprocess_change", args=[EngineProcess.objects.get().pk])
    html = admin_client.get(engine).content.decode()
    assert "box/GPU-0, box/GPU-1" in html
    assert "2 processes hold the model together" in html


def test_an_engine_without_a_replica_or_options_says_nothing(admin_client: Client) -> None:
    for process in (EngineProcessFactory(), ReplicaFactory(index=0).engine_process):
        url = reverse("admin:engines_engineprocess_change", args=[process.pk])
        html = admin_client.get(url).content.decode()
        assert "hold the model together" not in html
        assert "sleeps after" not in html


def test_the_engines_page_says_when_it_sleeps_and_what_its_cache_has(admin_client: Client) -> None:
    replica = ReplicaFactory(
        index=0, deployment=DeploymentFactory(model_version=shaped(), **SLEEP, **TIERS_ONLY)
    )
    url = reverse("admin:engines_engineprocess_change", args=[replica.engine_process_id])
    said = admin_client.get(url).content.decode().replace("\xa0", " ")
    assert (
        "sleeps after 300 s without work, 4.0 GB of host memory for its cache, "
        "8.0 GB of disk for its cache"
    ) in said


def test_who_may_only_look_sets_nothing(machine: Device) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    answer = staff("view_deployment").post(url, form(deployment, tensor_parallel=2))
    assert answer.status_code == 403
    stored = Deployment.objects.get()
    assert (stored.tensor_parallel, stored.generation) == (1, 1)
    assert not all_of(AuditEvent).exists()


def test_the_command_sets_and_takes_away(machine: Device, capsys: Any) -> None:
    DeploymentFactory(name="chat", model_version=shaped(), device_class="cuda")
    both = ("--sleep-after-s", "300", "--host-kv-cache-bytes", str(2 * GIB))
    call_command("deploy", "set", "chat", *both)
    assert capsys.readouterr().out == (
        "chat: kv_cache_dtype auto, speculation auto, attention auto, tensor_parallel 1, "
        "sleep_after_s 300, host_kv_cache_bytes 2147483648, disk_kv_cache_bytes none, "
        "draft_version none.\n"
    )
    neither = ("--sleep-after-s", "none", "--host-kv-cache-bytes", "none")
    call_command("deploy", "set", "chat", *neither)
    call_command("deploy", "set", "chat", "--tensor-parallel", "2")
    reconcile(machine)
    call_command("deploy", "list")
    assert "box/GPU-0, box/GPU-1" in capsys.readouterr().out
    stored = Deployment.objects.get()
    assert (stored.tensor_parallel, stored.sleep_after_s, stored.generation) == (2, None, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --kv-cache-dtype"),
        (("--tensor-parallel", "3"), "tensor_parallel: .* cannot be divided by 3"),
        (("--tensor-parallel", "none"), "tensor_parallel: "),
        (("--tensor-parallel", "two"), "invalid"),
        (("--disk-kv-cache-bytes", "9999999"), "disk_kv_cache_bytes: .* through host memory"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    DeploymentFactory(name="chat", model_version=shaped(), device_class="cuda")
    with pytest.raises(CommandError, match=said):
        call_command("deploy", "set", "chat", *arguments)
    assert Deployment.objects.get().generation == 1
    assert not all_of(AuditEvent).exists()


@pytest.mark.django_db(transaction=True)
def test_the_device_of_a_replica_becomes_one_of_its_devices_and_back() -> None:
    with migrated_back([("deployments", "0009_weights_fp8"), ("engines", "0007_fetching")]) as old:
        facts = {"n_parameters": 1, "context_length": 1, "vocab_size": 1, "size_bytes": 1}
        model = old.get_model("registry", "RegisteredModel").objects.create(name="m")
        artifact = old.get_model("registry", "ModelVersion").objects.create(
            model=model, version=1, manifest={}, **facts
        )
        deployment = old.get_model("deployments", "Deployment").objects.create(
            name="chat", model_version=artifact
        )
        node = old.get_model("engines", "Node").objects.create(
            name="box", n_cores=1, seen_at=timezone.now()
        )
        device = old.get_model("engines", "Device").objects.create(
            node=node, kind="cpu", index=0, uid="cpu", name="x", total_bytes=1, free_bytes=1,
            auto_dtype="float32",
        )  # fmt: skip
        processes = old.get_model("engines", "EngineProcess").objects
        for index, found in enumerate((device, None)):
            old.get_model("deployments", "Replica").objects.create(
                deployment=deployment, index=index, device=found,
                engine_process=processes.create(name=f"chat-{index}"),
            )  # fmt: skip
    first, second = Replica.objects.order_by("index")
    assert first.devices_said == "box/cpu"
    assert not second.devices.exists()
    with migrated_back([("deployments", "0009_weights_fp8")]) as old:
        rows = old.get_model("deployments", "Replica").objects.order_by("index")
        assert [row.device_id for row in rows] == [device.pk, None]
    Deployment.objects.all().delete()
    EngineProcess.objects.all().delete()
