"""Remote servers in the admin and by their services: what is refused, and that no key gets out."""

import json
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.sealing import SealBroken, unseal
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, RemoteServer
from apps.deployments.selectors import remote_target
from apps.deployments.services import (
    remote_server_create,
    remote_server_delete,
    remote_server_update,
)
from apps.engines.types import REMOTE_KEY_PURPOSE
from tests.factories import DeploymentFactory, ModelVersionFactory, RemoteServerFactory
from tests.integration.console.pages import actions, messages, staff
from tests.integration.deployments.test_admin import form
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LIST = reverse("admin:deployments_remoteserver_changelist")
ADD = reverse("admin:deployments_remoteserver_add")
KEY = "sk-0123456789-nobody-sees-this"


def server_form(**changed: object) -> dict[str, object]:
    fields = {
        "name": "cluster",
        "base_url": "https://models.example.com/v1",
        "api_key": "",
        "ca_file": "",
        "max_concurrency": 64,
        "connect_timeout_s": 5,
        "first_byte_timeout_s": 60,
        "idle_timeout_s": 30,
    }
    return {**fields, **changed}


def change_url(server: RemoteServer) -> str:
    return reverse("admin:deployments_remoteserver_change", args=[server.pk])


def key_of(server: RemoteServer) -> str:
    return unseal(server.api_key_sealed, purpose=REMOTE_KEY_PURPOSE).decode()


def test_a_key_is_kept_sealed_and_shown_nowhere(admin_client: Client) -> None:
    answer = admin_client.post(ADD, server_form(api_key=KEY))
    assert answer.status_code == 302, answer.context["errors"]
    server = RemoteServer.objects.get()
    assert key_of(server) == KEY
    deployment = DeploymentFactory(elsewhere=True, remote=server)
    pages = [
        admin_client.get(url).content.decode()
        for url in (
            LIST,
            change_url(server),
            reverse("admin:deployments_deployment_changelist"),
            reverse("admin:deployments_deployment_change", args=[deployment.pk]),
            reverse("admin:audit_auditevent_changelist"),
        )
    ]
    assert admin_client.post(change_url(server), server_form(idle_timeout_s=31)).status_code == 302
    server.refresh_from_db()
    assert key_of(server) == KEY
    events = [json.dumps(event.changes) for event in all_of(AuditEvent).all()]
    assert actions() == ["remote_server.created", "remote_server.updated"]
    target = remote_target(Deployment.objects.get(pk=deployment.pk))
    for said in (*pages, *events, repr(target)):
        assert KEY not in said
        assert server.api_key_sealed not in said


def test_a_key_is_replaced_and_taken_away(admin_client: Client) -> None:
    server = RemoteServerFactory(name="cluster")
    admin_client.post(change_url(server), server_form(api_key=KEY))
    server.refresh_from_db()
    assert key_of(server) == KEY
    admin_client.post(change_url(server), server_form(takes_key_away="on"))
    server.refresh_from_db()
    assert server.api_key_sealed == ""
    said = [event.changes.get("api_key") for event in all_of(AuditEvent).order_by("id")]
    assert said == [["...", "replaced"], ["...", "taken away"]]


def test_a_key_is_not_shown_to_another_server(admin_client: Client) -> None:
    server = RemoteServerFactory(name="cluster")
    before = RemoteServer.objects.values().get()
    thief = server_form(base_url="https://thief.example.net/v1")
    admin_client.post(change_url(server), thief)
    assert any("not shown to another server" in said for said in messages(admin_client, LIST))
    assert RemoteServer.objects.values().get() == before
    assert actions() == []
    same = server_form(base_url="https://models.example.com:443/v2")
    assert admin_client.post(change_url(server), same).status_code == 302
    assert admin_client.post(change_url(server), thief | {"api_key": KEY}).status_code == 302
    server.refresh_from_db()
    assert (server.base_url, key_of(server)) == ("https://thief.example.net/v1", KEY)


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"base_url": "ftp://models.example.com"}, "base_url"),
        ({"base_url": "https://me:secret@models.example.com/v1"}, "base_url"),
        ({"base_url": "https://10.0.0.1/v1"}, "base_url"),
        ({"base_url": "https://[fd00:ec2::254]/latest"}, "base_url"),
        ({"base_url": "http://8.8.8.8/v1"}, "base_url"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
        ({"ca_file": "ca.pem"}, "ca_file"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"idle_timeout_s": 0}, "idle_timeout_s"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    changed: dict[str, object], wrong: str, admin_client: Client
) -> None:
    answer = admin_client.post(ADD, server_form(**changed))
    assert list(answer.context["adminform"].form.errors) == [wrong]
    assert not RemoteServer.objects.exists()
    assert actions() == []


@pytest.mark.parametrize(
    ("held", "page", "data"),
    [
        ("view_remoteserver", "add", server_form()),
        ("view_remoteserver", "change", server_form(api_key=KEY)),
        ("change_deployment", "change", server_form(api_key=KEY)),
        ("change_remoteserver", "delete", {"post": "yes"}),
    ],
)
def test_who_may_not_changes_nothing(held: str, page: str, data: dict[str, Any]) -> None:
    server = RemoteServerFactory(name="cluster")
    before = list(RemoteServer.objects.values())
    url = f"admin:deployments_remoteserver_{page}"
    client = staff(held)
    assert (
        client.post(reverse(url, args=[server.pk] if page != "add" else []), data).status_code
        == 403
    )
    assert list(RemoteServer.objects.values()) == before
    assert actions() == []


def test_a_deployment_leads_to_a_remote_model(admin_client: Client) -> None:
    server = RemoteServerFactory()
    draft = DeploymentFactory.build(elsewhere=True, remote=server)
    data = form(
        draft, name="far", model_version="", remote=server.pk, remote_model="big",
        max_model_len=32768,
    )  # fmt: skip
    answer = admin_client.post(reverse("admin:deployments_deployment_add"), data)
    assert answer.status_code == 302, answer.context["errors"]
    deployment = Deployment.objects.get()
    assert (deployment.remote, deployment.model_version) == (server, None)
    page = admin_client.get(reverse("admin:deployments_deployment_changelist")).content.decode()
    assert f"big at {server}" in page


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"remote_model": ""}, "remote_model"),
        ({"max_model_len": ""}, "max_model_len"),
        ({"max_replicas": 2}, "max_replicas"),
        ({"remote": ""}, "model_version"),
    ],
)
def test_half_a_remote_deployment_is_refused(
    changed: dict[str, object], wrong: str, admin_client: Client
) -> None:
    server = RemoteServerFactory()
    draft = DeploymentFactory.build(elsewhere=True, remote=server)
    whole = {"model_version": "", "remote": server.pk, "remote_model": "m", "max_model_len": 4096}
    url = reverse("admin:deployments_deployment_add")
    answer = admin_client.post(url, form(draft, name="far", **whole | changed))
    assert list(answer.context["adminform"].form.errors) == [wrong]
    assert not Deployment.objects.exists()


def test_the_database_holds_that_it_is_here_or_elsewhere() -> None:
    for fields in (
        {"elsewhere": True, "model_version": ModelVersionFactory()},
        {"model_version": None},
    ):
        with pytest.raises(IntegrityError, match="deployment_here_or_remote"), transaction.atomic():
            DeploymentFactory(**fields)


def test_who_was_given_one_deployment_does_not_choose_its_server() -> None:
    deployment = DeploymentFactory(elsewhere=True)
    other = RemoteServerFactory()
    client = staff("change_deployment", "view_deployment")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    data = form(deployment, model_version="", remote=other.pk, max_model_len=4096)
    assert client.post(url, data).status_code == 302
    deployment.refresh_from_db()
    assert deployment.remote_id != other.pk
    assert actions() == []


def test_what_is_at_work_is_replaced_by_a_change(actor: Actor) -> None:
    deployment = DeploymentFactory(elsewhere=True)
    other = DeploymentFactory(elsewhere=True)
    before = change_stamps().get("deployments", 0)
    server = deployment.remote
    remote_server_update(server=server, actor=actor, max_concurrency=2)
    assert change_stamps()["deployments"] == before + 1
    assert [each.generation for each in Deployment.objects.order_by("id")] == [2, 1]
    remote_server_update(server=server, actor=actor, max_concurrency=2)
    assert change_stamps()["deployments"] == before + 1
    assert actions() == ["remote_server.updated"]
    with pytest.raises(Conflict, match=other.name):
        remote_server_delete(server=other.remote, actor=actor)
    assert RemoteServer.objects.count() == 2


def test_a_key_that_no_header_can_hold_is_refused(actor: Actor) -> None:
    for key in ("two\r\nlines", "schlüssel", "x" * 4097):
        with pytest.raises(ValidationError):
            remote_server_create(
                name="a", base_url="https://models.example.com", api_key=key, actor=actor
            )
    assert not RemoteServer.objects.exists()
    assert actions() == []


def test_keys_survive_a_new_secret_key_that_knows_the_old_one(settings: Any) -> None:
    server = RemoteServerFactory(api_key=KEY)
    old, settings.SECRET_KEY = settings.SECRET_KEY, "another-secret-key" * 4
    with pytest.raises(SealBroken):
        key_of(server)
    settings.SECRET_KEY_FALLBACKS = [old]
    assert key_of(server) == KEY
    with pytest.raises(SealBroken):
        unseal(server.api_key_sealed, purpose="something else")
