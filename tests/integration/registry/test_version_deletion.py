"""Deleting a version: what keeps it, who may, and that row and files go together."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.registry.exceptions import VersionInUse
from apps.registry.models import LooseFolder, ModelVersion, StageMove, VerificationRun
from apps.registry.services import import_model, model_version_delete
from tests.factories import DeploymentFactory, ModelVersionFactory, VerificationRunFactory
from tests.integration.console.pages import staff
from tests.integration.registry.places import Places
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(places: Places, gguf: Path, actor: Actor) -> ModelVersion:
    return import_model(name="tiny", source_path=gguf, actor=actor)


def state() -> list[Any]:
    rows: list[Any] = [list(ModelVersion.objects.order_by("pk").values())]
    rows += [list(VerificationRun.objects.values()), list(LooseFolder.objects.values())]
    return [*rows, all_of(AuditEvent).count()]


def test_row_and_files_go_and_the_number_stays_away(
    version: ModelVersion,
    places: Places,
    gguf: Path,
    actor: Actor,
    django_capture_on_commit_callbacks: Any,
) -> None:
    directory = places.models / version.path
    StageMove.objects.create(version=version, before="draft", after="retired", actor_label="ann")
    version.tags.create(name="chat")
    VerificationRunFactory(version=version, status="passed")
    with django_capture_on_commit_callbacks() as callbacks:
        model_version_delete(version=version, actor=actor)
        assert (directory / "manifest.json").is_file()  # until it is committed
    assert not ModelVersion.objects.exists()
    assert LooseFolder.objects.get().path == "tiny/1"
    for callback in callbacks:
        callback()
    assert not directory.exists()
    assert not LooseFolder.objects.exists()
    event = all_of(AuditEvent).filter(action="model_version.deleted").get()
    assert event.object_label == "tiny v1"
    assert event.changes["manifest_sha256"] == version.manifest_sha256
    again = import_model(name="tiny", source_path=gguf, actor=actor)
    assert (again.version, again.path) == (2, "tiny/2")
    places.check()


def in_use_by_a_deployment(version: ModelVersion) -> str:
    DeploymentFactory(name="chat", model_version=version, desired_state="stopped")
    return "is still used by: chat."


def in_use_as_a_draft_model(version: ModelVersion) -> str:
    DeploymentFactory(name="chat", draft_version=version, desired_state="stopped")
    return "is still used by: chat."


def in_use_as_a_parent(version: ModelVersion) -> str:
    child = ModelVersionFactory(parent=version, lineage="fine_tuned")
    return f"is still used by: {child}."


def in_use_by_a_verification(version: ModelVersion) -> str:
    VerificationRunFactory(version=version, status="running")
    return "is being verified."


def in_use_in_production(version: ModelVersion) -> str:
    ModelVersion.objects.filter(pk=version.pk).update(stage="approved")
    return "is approved: withdraw that first."


@pytest.mark.parametrize(
    "used",
    [
        in_use_by_a_deployment,
        in_use_as_a_draft_model,
        in_use_as_a_parent,
        in_use_by_a_verification,
        in_use_in_production,
    ],
)
def test_what_is_needed_stays(
    version: ModelVersion, places: Places, actor: Actor, used: Any
) -> None:
    said = used(version)
    seen = state()
    with pytest.raises(VersionInUse) as caught:
        model_version_delete(version=version, actor=actor)
    assert caught.value.message == f"tiny v1 {said}"
    assert state() == seen
    assert json.loads((places.models / version.path / "manifest.json").read_text())


def url(version: ModelVersion) -> str:
    return reverse("admin:registry_modelversion_delete", args=[version.pk])


def test_its_page_deletes(version: ModelVersion) -> None:
    VerificationRunFactory(version=version, status="passed")
    client = staff("view_modelversion", "delete_modelversion")
    assert client.get(url(version)).status_code == 200
    answer = client.post(url(version), {"post": "yes"})
    assert answer.status_code == 302
    assert not ModelVersion.objects.exists()


def test_its_page_says_why_not(version: ModelVersion, admin_client: Client) -> None:
    in_use_by_a_verification(version)
    seen = state()
    answer = admin_client.post(url(version), {"post": "yes"}, follow=True)
    assert "tiny v1 is being verified." in answer.content.decode()
    assert state() == seen


def test_who_may_not_deletes_nothing(version: ModelVersion, places: Places) -> None:
    seen = state()
    client = staff("view_modelversion", "change_modelversion", "approve_modelversion")
    assert client.post(url(version), {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [version.pk], "post": "yes"}
    client.post(reverse("admin:registry_modelversion_changelist"), chosen)
    assert state() == seen
    assert (places.models / version.path / "manifest.json").is_file()
