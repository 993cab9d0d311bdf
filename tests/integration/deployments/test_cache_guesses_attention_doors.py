"""How a deployment's engine stores keys and values, guesses and attends: who sets it, and where it
is seen."""

from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
from apps.deployments.services import deployment_update
from apps.engines.models import Device
from tests.factories import DeploymentFactory, ReplicaFactory
from tests.integration.console.pages import staff
from tests.integration.deployments.machine import machine, reconcile, shaped
from tests.integration.deployments.test_admin import form
from tests.integration.deployments.test_cache_guesses_attention import FLASH, FP8, OPTIONS
from tests.rows import all_of

__all__ = ["machine"]  # a fixture

pytestmark = pytest.mark.django_db


def test_a_change_is_audited_and_replaces_the_engine(machine: Device, actor: Actor) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda")
    for n, option in enumerate(OPTIONS, start=2):
        if option.get("attention") == "flash-attn":
            option = {**option, "kv_cache_dtype": "auto"}
        deployment_update(deployment=deployment, actor=actor, **option)
        assert Deployment.objects.get().generation == n
    last = all_of(AuditEvent).order_by("id").last()
    assert last is not None
    assert last.changes == {"attention": ["flash-attn", "flashinfer"]}


def test_the_page_sets_and_shows_them(machine: Device, admin_client: Client) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    assert "<details>" in admin_client.get(url).content.decode()
    wrong = admin_client.post(url, form(deployment, **FLASH, dtype="float32"))
    assert wrong.status_code == 200
    assert "<details>" not in wrong.content.decode(), "what is wrong is folded away"
    assert "flash-attn computes in numbers of 16 bits" in wrong.content.decode()
    assert Deployment.objects.get().attention == "auto"
    chosen = {**FP8, "speculation": "ngram", "attention": "flashinfer"}
    answer = admin_client.post(url, form(deployment, **chosen))
    assert answer.status_code == 302, answer.context["errors"]
    reconcile(machine)
    process = Replica.objects.get().engine_process
    engine = reverse("admin:engines_engineprocess_change", args=[process.pk])
    said = "keys and values in fp8, guesses by prompt lookup, attention by FlashInfer"
    assert said in admin_client.get(engine).content.decode()
    assert "128.0\xa0MB of KV cache" in admin_client.get(url).content.decode()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"speculation": "off"}, "guesses nothing"),
        ({"attention": "triton"}, "attention by our kernels"),
        ({"attention": "flash-attn"}, "attention by flash-attn"),
        ({}, ""),
    ],
)
def test_an_engine_says_what_is_chosen(option: dict[str, Any], said: str) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda", **option)
    assert ReplicaFactory(index=0, deployment=deployment).options_said == said


def test_who_may_only_look_sets_nothing(machine: Device) -> None:
    deployment = DeploymentFactory(model_version=shaped(), device_class="cuda")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    changed = form(deployment, kv_cache_dtype="fp8", speculation="off", attention="triton")
    assert staff("view_deployment").post(url, changed).status_code == 403
    stored = Deployment.objects.get()
    assert (stored.kv_cache_dtype, stored.speculation, stored.attention) == ("auto",) * 3
    assert stored.generation == 1
    assert not all_of(AuditEvent).exists()
    allowed = staff("view_deployment", "change_deployment", "view_modelversion")
    assert allowed.post(url, changed).status_code == 302
    assert Deployment.objects.get().kv_cache_dtype == "fp8"


def test_the_command_sets_and_takes_away(machine: Device, capsys: Any) -> None:
    DeploymentFactory(name="chat", model_version=shaped(), device_class="cuda")
    chosen = ("--kv-cache-dtype", "fp8", "--speculation", "off", "--attention", "flashinfer")
    call_command("deploy", "set", "chat", *chosen)
    assert capsys.readouterr().out.startswith(
        "chat: kv_cache_dtype fp8, speculation off, attention flashinfer, tensor_parallel 1, "
    )
    call_command("deploy", "set", "chat", "--kv-cache-dtype", "auto")
    stored = Deployment.objects.get()
    assert (stored.kv_cache_dtype, stored.speculation, stored.generation) == ("auto", "off", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kv-cache-dtype", "none"), "invalid choice: 'none'"),
        (("--speculation", "on"), "invalid choice: 'on'"),
        (("--attention", "flash"), "invalid choice: 'flash'"),
        (("--attention", "triton"), "attention: This needs a GPU"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    DeploymentFactory(name="chat", model_version=shaped())
    with pytest.raises(CommandError, match=said):
        call_command("deploy", "set", "chat", *arguments)
    assert Deployment.objects.get().generation == 1
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}
