"""What is said of versions, their stages, and what a stage allows: services and pages."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.access import Access
from apps.core.exceptions import PermissionDenied
from apps.deployments.models import Deployment
from apps.deployments.services import (
    deployment_create,
    deployment_restart,
    deployment_start,
    deployment_stop,
    deployment_update,
)
from apps.rbac.models import Role, RoleGrant
from apps.registry.exceptions import StageMoveRefused, StageNotDeployable
from apps.registry.models import ModelVersion, StageMove, VersionTag
from apps.registry.services import model_version_describe, model_version_stage_move
from apps.registry.stages import APPROVE, CHANGE
from apps.registry.types import Stage
from tests.factories import DeploymentFactory, ModelVersionFactory, UserFactory
from tests.integration.console.pages import actions, inline, messages
from tests.rows import all_of

pytestmark = pytest.mark.django_db

ALL = Access(is_superuser=True)


def state() -> list[Any]:
    rows: list[Any] = [list(ModelVersion.objects.order_by("pk").values())]
    rows += [list(StageMove.objects.values()), list(VersionTag.objects.values())]
    return [*rows, list(Deployment.objects.values()), all_of(AuditEvent).count()]


def in_stage(stage: str) -> ModelVersion:
    return ModelVersionFactory(stage=stage)


def test_a_move_is_a_row_and_an_event(actor: Actor) -> None:
    version = in_stage("verified")
    moved = model_version_stage_move(
        version=version, stage=Stage.APPROVED, by=ALL, actor=actor, reason=" good enough "
    )
    assert moved.stage == "approved"
    (move,) = version.moves.all()
    assert (str(move), move.reason, move.actor_label) == (
        "Verified → Approved", "good enough", "alice",
    )  # fmt: skip
    event = all_of(AuditEvent).get()
    assert event.action == "model_version.stage_moved"
    assert event.changes == {"stage": ["verified", "approved"], "reason": "good enough"}


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [
        ("verified", "approved", CHANGE),
        ("approved", "verified", CHANGE),
        ("approved", "retired", CHANGE),
        ("verified", "retired", APPROVE),
        ("retired", "draft", APPROVE),
    ],
)
def test_a_move_needs_its_permission(actor: Actor, before: str, after: str, held: str) -> None:
    version = in_stage(before)
    seen = state()
    with pytest.raises(PermissionDenied):
        model_version_stage_move(
            version=version, stage=Stage(after), by=Access(platform=frozenset({held})), actor=actor
        )
    assert state() == seen


def test_no_move_that_is_not_in_the_table(actor: Actor) -> None:
    version = in_stage("draft")
    seen = state()
    with pytest.raises(StageMoveRefused):
        model_version_stage_move(version=version, stage=Stage.VERIFIED, by=ALL, actor=actor)
    assert state() == seen


# -- what a stage allows -----------------------------------------------------------------------


def test_a_retired_version_is_neither_deployed_nor_started(actor: Actor) -> None:
    retired = in_stage("retired")
    stopped = DeploymentFactory(model_version=retired, desired_state="stopped")
    running = DeploymentFactory(model_version=retired)
    other = DeploymentFactory()
    seen = state()
    for refused in (
        lambda: deployment_create(actor=actor, name="new", model_version=retired),
        lambda: deployment_start(deployment=stopped, actor=actor),
        lambda: deployment_restart(deployment=running, actor=actor),
        lambda: deployment_update(deployment=other, actor=actor, model_version=retired),
        lambda: deployment_update(deployment=stopped, actor=actor, desired_state="running"),
        lambda: deployment_update(deployment=running, actor=actor, min_replicas=2, max_replicas=2),
    ):
        with pytest.raises(StageNotDeployable) as caught:
            refused()
        assert (caught.value.param, caught.value.code) == ("model_version", "stage_not_deployable")
        assert "is retired; a deployment needs a version that is draft or" in caught.value.message
    assert state() == seen
    assert deployment_stop(deployment=running, actor=actor).desired_state == "stopped"


def test_production_may_take_approved_versions_only(actor: Actor, settings: Any) -> None:
    settings.DEPLOY_STAGES = ["approved"]
    with pytest.raises(
        StageNotDeployable, match="is verified; a deployment needs a version that is approved"
    ):
        deployment_create(actor=actor, name="new", model_version=in_stage("verified"))
    deployment = deployment_create(actor=actor, name="new", model_version=in_stage("approved"))
    assert deployment.desired_state == "running"


# -- what is said of a version -----------------------------------------------------------------


def test_what_is_said_of_a_version(actor: Actor) -> None:
    parent, version = ModelVersionFactory(), ModelVersionFactory()
    fields: Any = {
        "tags": ("small", "chat", "chat"), "parent": parent, "lineage": "quantised",
        "model_card": "# Card", "license": "mit",
    }  # fmt: skip
    model_version_describe(version=version, actor=actor, **fields)
    version = ModelVersion.objects.get(pk=version.pk)
    assert (version.tag_names, version.parent, version.license) == (
        ["chat", "small"], parent, "mit",
    )  # fmt: skip
    changes = all_of(AuditEvent).get().changes
    assert changes["tags"] == [[], ["chat", "small"]]
    assert changes["model_card"] == ["0 characters", "6 characters"]
    model_version_describe(version=version, actor=actor, **fields)
    assert all_of(AuditEvent).count() == 1


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"tags": ("ok", "Not Ok")}, "tags", "'Not Ok': Use lower-case letters"),
        ({"tags": tuple(f"t{n}" for n in range(21))}, "tags", "At most 20 tags, not 21."),
        ({"lineage": "quantised"}, "lineage", "Give both"),
        ({"model_card": "x" * 262_145}, "model_card", "at most 262144 characters"),
    ],
)
def test_what_is_wrong_is_named(
    actor: Actor, fields: dict[str, Any], field: str, said: str
) -> None:
    version = ModelVersionFactory()
    seen = state()
    with pytest.raises(ValidationError) as caught, transaction.atomic():
        model_version_describe(version=version, actor=actor, **fields)
    assert said in caught.value.message_dict[field][0]
    assert state() == seen


def test_no_version_is_its_own_ancestor(actor: Actor) -> None:
    first = ModelVersionFactory()
    second = ModelVersionFactory(parent=first, lineage="fine_tuned")
    for parent in (first, second):
        with pytest.raises(ValidationError, match="was itself made of"):
            model_version_describe(version=first, actor=actor, parent=parent, lineage="fine_tuned")


def test_the_database_knows_lineage_too() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelVersionFactory(lineage="quantised")


# -- pages -------------------------------------------------------------------------------------


def page(version: ModelVersion) -> str:
    return reverse("admin:registry_modelversion_change", args=[version.pk])


def move_url(version: ModelVersion, name: str) -> str:
    return reverse(f"admin:registry_modelversion_{name}", args=[version.pk])


def with_role(slug: str) -> Client:
    user = UserFactory(is_staff=True)
    RoleGrant.objects.create(role=Role.objects.get(slug=slug), user=user)
    client = Client()
    client.force_login(user)
    return client


def form(version: ModelVersion, **changed: object) -> dict[str, object]:
    fields = {
        "license": version.license, "tags": "", "parent": "", "lineage": "", "model_card": "",
        **inline("moves"), **inline("verifications"),
    }  # fmt: skip
    return {**fields, **changed}


CONFIRMED = {"_form_submitted": "True", "reason": "because"}


def test_the_page_says_and_takes_what_a_person_writes(
    admin_client: Client, settings: Any, tmp_path: Any
) -> None:
    settings.MODELS_DIR = tmp_path
    version = ModelVersionFactory(path="m/1")
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/chat_template.jinja").write_text("{% for <b>m</b> in messages %}")
    sent = form(version, tags="chat, small", model_card="<script>alert(1)</script>")
    answer = admin_client.post(page(version), sent)
    assert answer.status_code == 302, answer.context["errors"]
    html = admin_client.get(page(version)).content.decode()
    assert 'value="chat, small"' in html
    assert "{% for &lt;b&gt;m&lt;/b&gt; in messages %}" in html
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    url = reverse("admin:registry_modelversion_changelist")
    found = admin_client.get(url, {"tag_list": "chat"})
    assert [row.pk for row in found.context["cl"].result_list] == [version.pk]
    none = admin_client.get(url, {"tag_list": "big"})
    assert list(none.context["cl"].result_list) == []


def test_moves_by_the_buttons(admin_client: Client) -> None:
    version = in_stage("verified")
    for name, stage in (
        ("approve", "approved"), ("withdraw", "verified"), ("retire", "retired"),
        ("back_to_draft", "draft"),
    ):  # fmt: skip
        assert admin_client.post(move_url(version, name), CONFIRMED).status_code == 302
        version.refresh_from_db()
        assert version.stage == stage
    assert version.moves.count() == 4
    assert actions() == ["model_version.stage_moved"] * 4
    assert "Verified → Approved" in admin_client.get(page(version)).content.decode()


def test_a_button_that_leads_nowhere_says_so(admin_client: Client) -> None:
    version = in_stage("draft")
    seen = state()
    admin_client.post(move_url(version, "approve"), CONFIRMED)
    assert "it can become retired" in messages(admin_client, page(version))[0]
    assert state() == seen


@pytest.mark.parametrize(
    ("role", "before", "names", "status"),
    [
        ("operator", "verified", ["approve", "withdraw"], 403),
        ("viewer", "verified", ["approve", "withdraw", "retire", "back_to_draft"], 403),
        ("auditor", "verified", ["approve", "retire"], 403),
        ("developer", "verified", ["approve", "retire"], 403),
        ("operator", "approved", ["retire"], 302),
    ],
)
def test_who_may_not_changes_nothing(role: str, before: str, names: list[str], status: int) -> None:
    version, client = in_stage(before), with_role(role)
    seen = state()
    for name in names:
        assert client.post(move_url(version, name), CONFIRMED).status_code == status
    if role != "operator":
        assert client.post(page(version), form(version, license="gpl")).status_code == 403
    assert state() == seen


def test_an_operator_describes_and_retires_and_an_admin_approves() -> None:
    version, operator = in_stage("verified"), with_role("operator")
    assert operator.post(page(version), form(version, tags="chat")).status_code == 302
    assert version.tag_names == ["chat"]
    with_role("admin").post(move_url(version, "approve"), CONFIRMED)
    version.refresh_from_db()
    assert version.stage == "approved"


def test_whoever_only_looks_sees_it_all() -> None:
    parent = ModelVersionFactory()
    version = ModelVersionFactory(parent=parent, lineage="fine_tuned", model_card="# Card <b>")
    version.tags.create(name="chat")
    html = with_role("viewer").get(page(version)).content.decode()
    for said in ("# Card &lt;b&gt;", "chat", f"Fine-tuned from {parent}", "Draft"):
        assert said in html


def test_two_versions_side_by_side(admin_client: Client) -> None:
    files = {"a.json": {"sha256": "a" * 64, "size_bytes": 10}}
    left = ModelVersionFactory(
        manifest={"files": {**files, "w": {"sha256": "b" * 64, "size_bytes": 100}}},
        n_parameters=100,
    )
    right = ModelVersionFactory(
        manifest={"files": {**files, "w": {"sha256": "c" * 64, "size_bytes": 50}}}, n_parameters=50
    )
    answer = admin_client.post(
        reverse("admin:registry_modelversion_changelist"),
        {"action": "compare_selected", "_selected_action": [left.pk, right.pk]},
    )
    shown = admin_client.get(answer["Location"])
    assert shown.status_code == 200
    facts = {row.label: row for row in shown.context["facts"]}
    assert facts["Parameters"].ratio == 0.5
    assert facts["Stage"].is_different is False
    verdicts = [(row.name, row.verdict) for row in shown.context["files"]]
    assert verdicts == [("w", "differs"), ("a.json", "same")]


def test_one_version_is_not_compared(admin_client: Client) -> None:
    url = reverse("admin:registry_modelversion_changelist")
    one = ModelVersionFactory()
    admin_client.post(url, {"action": "compare_selected", "_selected_action": [one.pk]})
    assert messages(admin_client, url) == ["Select two versions to compare."]


def test_comparing_is_for_those_who_see_versions() -> None:
    url = reverse("admin:registry_modelversion_compare")
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    assert client.get(url).status_code == 403
    assert with_role("viewer").get(url).status_code == 200
    junk = with_role("viewer").get(url, {"left": "9" * 30, "right": "x"})
    assert junk.status_code == 200
