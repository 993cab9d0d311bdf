"""The draft model of a deployment: who sets it, and where it is seen."""

import re
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.deployments.models import Deployment, Replica
from apps.engines.models import Device
from apps.registry.models import ModelVersion
from tests.factories import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.integration.console.pages import staff
from tests.integration.deployments.guessing import draft, target
from tests.integration.deployments.machine import machine, reconcile
from tests.integration.deployments.test_admin import form
from tests.rows import all_of

__all__ = ["draft", "machine", "target"]  # fixtures

pytestmark = pytest.mark.django_db


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
