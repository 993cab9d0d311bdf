"""The draft model of a deployment: what is refused, what it claims, who sets it and where it is
seen."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
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
    EngineProcessFactory,
    RemoteServerFactory,
    ReplicaFactory,
)
from tests.integration.console.pages import staff
from tests.integration.deployments.machine import (
    GIB,
    SLEEP,
    TIERS,
    TWO,
    machine,
    reconcile,
    shaped,
)
from tests.integration.deployments.test_admin import form
from tests.rows import all_of

__all__ = ["machine"]  # a fixture

pytestmark = pytest.mark.django_db

WORDS = "ab" * 32
SMALL = {"n_layers": 2, "hidden_size": 128, "n_heads": 2, "n_kv_heads": 2, "intermediate_size": 256}


@pytest.fixture
def target() -> ModelVersion:
    found: ModelVersion = shaped(model__name="large", vocabulary_sha256=WORDS)
    return found


@pytest.fixture
def draft() -> ModelVersion:
    return small()


def small(**changed: Any) -> ModelVersion:
    fields = {"model__name": "small", "vocabulary_sha256": WORDS, "shape": SMALL, **changed}
    found: ModelVersion = shaped(**fields)
    return found


def nothing_changed() -> None:
    assert not Deployment.objects.exists()
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (TWO, "has no several devices"),
        ({"device_class": "cpu", "tensor_parallel": 2}, "has no several devices"),
        (SLEEP, "has no sleep"),
        (TIERS, "has no cache below the GPU"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    fields: dict[str, Any], said: str, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    with pytest.raises(ValidationError) as refusal:
        deployment_create(
            actor=actor, name="chat", model_version=target, draft_version=draft, **fields
        )
    assert set(refusal.value.message_dict) == {"draft_version"}
    assert said in refusal.value.messages[0]
    nothing_changed()


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
    assert (n_taken, n_refused) == (6, 15)


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
        {"tensor_parallel": 2},
        {"sleep_after_s": 60},
        {"host_kv_cache_bytes": GIB},
        {"backend": "nanovllm"},
        {"draft_version": target},
        {"model_version": None, "remote": RemoteServerFactory()},
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            rows.update(**wrong)
    assert rows.get().draft_version == draft
    rows.update(draft_version=None, sleep_after_s=60, tensor_parallel=2, backend="nanovllm")


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


# -- who sets it, and where it is seen -------------------------------------------------------------


def test_the_page_sets_shows_and_takes_away(
    machine: Device, target: ModelVersion, draft: ModelVersion, admin_client: Client
) -> None:
    deployment = DeploymentFactory(model_version=target)
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    wrong = admin_client.post(url, form(deployment, draft_version=target.pk))
    assert "<details>" not in wrong.content.decode(), "what is wrong is folded away"
    assert "The model itself is no faster" in wrong.content.decode()
    assert Deployment.objects.get().draft_version is None
    answer = admin_client.post(url, form(deployment, draft_version=draft.pk))
    assert answer.status_code == 302, answer.context["errors"]
    said = admin_client.get(url).content.decode().replace("\xa0", " ")
    assert (
        " while it loads, and for its draft model 38.8 MB: 1.1 MB of weights, 32.0 MB of KV cache, "
        "5.0 MB for steps, 640.0 KB while it loads."
    ) in said
    reconcile(machine)
    engine = reverse(
        "admin:engines_engineprocess_change", args=[Replica.objects.get().engine_process_id]
    )
    assert "small v1 guesses for it" in admin_client.get(engine).content.decode()
    deployment = Deployment.objects.get()
    assert admin_client.post(url, form(deployment, draft_version="")).status_code == 302
    stored = Deployment.objects.get()
    assert (stored.draft_version, stored.generation) == (None, 3)
    assert "for its draft model" not in admin_client.get(url).content.decode()


def test_who_may_only_look_sets_none(target: ModelVersion, draft: ModelVersion) -> None:
    deployment = DeploymentFactory(model_version=target)
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    client = staff("view_deployment", "view_modelversion")
    assert client.post(url, form(deployment, draft_version=draft.pk)).status_code == 403
    stored = Deployment.objects.get()
    assert (stored.draft_version, stored.generation) == (None, 1)
    assert not all_of(AuditEvent).exists()


def test_the_command_sets_lists_and_takes_away(
    target: ModelVersion, draft: ModelVersion, capsys: Any
) -> None:
    DeploymentFactory(name="chat", model_version=target)
    for text in ("small:1", "small"):
        call_command("deploy", "set", "chat", "--draft-version", text)
        assert capsys.readouterr().out.endswith(
            "disk_kv_cache_bytes none, draft_version small v1.\n"
        )
    call_command("deploy", "list")
    assert "  guessed for by small v1" in capsys.readouterr().out
    call_command("deploy", "set", "chat", "--draft-version", "none")
    assert capsys.readouterr().out.endswith("draft_version none.\n")
    call_command("deploy", "list")
    assert "guessed" not in capsys.readouterr().out
    assert Deployment.objects.get().generation == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("small:2", "draft_version: there is no version small:2"),
        ("large:1", "draft_version: The model itself is no faster"),
    ],
)
def test_the_command_says_what_is_wrong(
    text: str, said: str, target: ModelVersion, draft: ModelVersion
) -> None:
    DeploymentFactory(name="chat", model_version=target)
    with pytest.raises(CommandError, match=said):
        call_command("deploy", "set", "chat", "--draft-version", text)
    stored = Deployment.objects.get()
    assert (stored.draft_version, stored.generation) == (None, 1)
    assert not all_of(AuditEvent).exists()


def test_the_engines_page_says_how_many_guesses_were_right(admin_client: Client) -> None:
    counted = EngineProcessFactory(ready=True)
    named = ("n_running", "n_waiting", "n_blocks_free", "n_blocks_total", "rss_bytes")
    counted.stats = dict.fromkeys(named, 7) | {"n_drafted_tokens": 2400, "n_accepted_tokens": 1500}
    counted.save()
    none = ReplicaFactory(index=0).engine_process
    for process, said in ((counted, "2,400 / 1,500 (62%)"), (none, "-")):
        url = reverse("admin:engines_engineprocess_change", args=[process.pk])
        html = admin_client.get(url).content.decode()
        words = re.sub(r"(<[^>]*>|\s)+", " ", html)
        assert f"Tokens guessed / accepted {said} " in words
