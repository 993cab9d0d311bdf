"""Which engine a deployment runs: chosen on it, checked when it is saved, told on its command
line."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment
from apps.deployments.services import deployment_create, deployment_update, replicas_reconcile
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    ModelVersionFactory,
    RemoteServerFactory,
)
from tests.integration.console.pages import staff
from tests.integration.deployments.test_admin import form
from tests.rows import all_of

pytestmark = pytest.mark.django_db

GIB = 2**30
NANO: dict[str, Any] = {"backend": "nanovllm", "device_class": "cuda"}


@pytest.fixture
def qwen3() -> Any:
    return ModelVersionFactory(architecture="Qwen3ForCausalLM", n_parameters=10**9)


def test_a_qwen3_on_a_gpu_runs_by_nano_vllm(qwen3: Any, actor: Actor, settings: Any) -> None:
    node = DeviceFactory(node__name="box", free_bytes=64 * GIB).node
    DeviceFactory(node=node, kind="cuda", uid="GPU-1", free_bytes=64 * GIB, auto_dtype="bfloat16")
    deployment_create(actor=actor, name="chat", model_version=qwen3, **NANO)
    (spec,) = replicas_reconcile(node_id=node.pk).specs
    assert spec.arguments[4:6] == ("--backend", "nanovllm")
    assert spec.environment == (("CUDA_VISIBLE_DEVICES", "GPU-1"),)


def test_where_no_machine_has_a_gpu_it_is_said(qwen3: Any, actor: Actor) -> None:
    DeviceFactory(free_bytes=64 * GIB)
    with pytest.raises(ValidationError, match="no machine has a GPU for it"):
        deployment_create(actor=actor, name="chat", model_version=qwen3, **NANO)
    assert not Deployment.objects.exists()


def test_our_own_engine_is_the_default_and_not_said(settings: Any) -> None:
    deployment = DeploymentFactory()
    assert deployment.backend == "native"
    (spec,) = replicas_reconcile().specs
    assert "--backend" not in spec.arguments


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"device_class": "auto"}, "device_class", "nano-vllm runs on a GPU only"),
        ({"device_class": "cpu"}, "device_class", "nano-vllm runs on a GPU only"),
        ({"dtype": "float32"}, "dtype", "nano-vllm computes in bfloat16"),
        ({"quantization": "int8"}, "quantization", "with its weights as they are"),
    ],
)
def test_what_nano_vllm_cannot_is_refused_by_its_field(
    fields: dict[str, Any], param: str, said: str, qwen3: Any, actor: Actor
) -> None:
    with pytest.raises(ValidationError) as refusal:
        deployment_create(actor=actor, name="chat", model_version=qwen3, **{**NANO, **fields})
    assert set(refusal.value.message_dict) == {param}
    assert said in refusal.value.messages[0]
    assert not Deployment.objects.exists()
    assert not all_of(AuditEvent).exists()


def test_other_models_and_remote_servers_are_refused(actor: Actor) -> None:
    llama = ModelVersionFactory(model__name="llama")
    with pytest.raises(ValidationError) as refusal:
        deployment_create(actor=actor, name="chat", model_version=llama, **NANO)
    assert refusal.value.message_dict == {
        "backend": ["nano-vllm runs Qwen3 only; llama v1 is a LlamaForCausalLM."]
    }
    with pytest.raises(ValidationError) as refusal:
        deployment_create(
            actor=actor, name="far", remote=RemoteServerFactory(), remote_model="x",
            max_model_len=512, **NANO,
        )  # fmt: skip
    assert set(refusal.value.message_dict) == {"backend"}
    assert not Deployment.objects.exists()


def test_another_engine_replaces_the_running_one(qwen3: Any, actor: Actor) -> None:
    deployment = DeploymentFactory(name="chat", model_version=qwen3)
    deployment_update(deployment=deployment, actor=actor, **NANO)
    assert Deployment.objects.get().generation == 2
    assert all_of(AuditEvent).get().changes == {
        "backend": ["native", "nanovllm"],
        "device_class": ["auto", "cuda"],
    }


def test_it_is_chosen_and_seen_in_the_admin(
    qwen3: Any, admin_client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = DeploymentFactory.build(model_version=qwen3)
    url = reverse("admin:deployments_deployment_add")
    answer = admin_client.post(url, form(draft, name="chat", backend="nanovllm"))
    assert "nano-vllm runs on a GPU only" in answer.content.decode()
    answer = admin_client.post(url, form(draft, name="chat", **NANO))
    assert answer.status_code == 302, answer.context["errors"]
    DeploymentFactory(name="other")
    listed = reverse("admin:deployments_deployment_changelist")
    found = admin_client.get(listed, {"backend__exact": "nanovllm"}).context["cl"].queryset
    assert [each.name for each in found] == ["chat"]
    call_command("deploy", "list")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert ("on nano-vllm" in lines["chat"], "on nano-vllm" in lines["other"]) == (True, False)


def test_who_may_not_change_deployments_chooses_no_engine(qwen3: Any) -> None:
    deployment = DeploymentFactory(model_version=qwen3)
    page = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    assert staff("view_deployment").post(page, form(deployment, **NANO)).status_code == 403
    stored = Deployment.objects.get()
    assert (stored.backend, stored.generation) == ("native", 1)
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}
