"""A second factor that somebody lost: a superuser takes it away, or whoever runs the machine."""

import io

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.test import Client
from django_otp.plugins.otp_totp.models import TOTPDevice

from apps.audit.models import AuditEvent
from tests.integration.console.pages import actions, messages
from tests.integration.sign_in.people import Visitor, act, said, stored, visitor
from tests.rows import all_of

pytestmark = pytest.mark.django_db

PEOPLE = "/admin/sign_in/person/"


def test_a_superuser_takes_away_anothers_device_and_sees_no_secret(admin_client: Client) -> None:
    person = visitor(username="ann", is_enrolled=True)
    page = admin_client.get(PEOPLE)
    assert "Enrolled" in said(page)
    assert TOTPDevice.objects.get().key not in page.content.decode()
    act(admin_client, "reset", person.user.pk)
    assert stored() == ([], [])
    event = all_of(AuditEvent).order_by("-id")[0]
    assert (event.action, event.actor_label, event.object_label, event.changes) == (
        "two_factor.reset",
        "admin",
        "ann",
        {},
    )
    assert not person.is_in()
    again = Visitor(person.user)
    again.password_step()
    assert again.is_in()


def test_nobody_else_may() -> None:
    person = visitor(is_enrolled=True)
    before = stored()
    other = visitor(username="bob")
    rooms = ["sign_in", "rbac", "otp_totp"]
    rights = Permission.objects.filter(content_type__app_label__in=rooms)
    other.user.user_permissions.set(rights)
    n_events = all_of(AuditEvent).count()
    assert other.client.get(PEOPLE).status_code == 200
    for name in ("reset", "sign_out", "require", "release"):
        answer = act(other.client, name, person.user.pk)
        assert answer.status_code == 403
    assert stored() == before
    assert all_of(AuditEvent).count() == n_events
    assert person.is_in()


def test_ones_own_takes_password_and_code() -> None:
    person = visitor(is_enrolled=True, is_superuser=True)
    before = stored()
    act(person.client, "reset", person.user.pk)
    assert messages(person.client, PEOPLE) == [
        "Your own second factor is replaced or removed on your account page."
    ]
    assert stored() == before
    assert "two_factor.reset" not in actions()


def test_the_libraries_pages_with_secrets_are_not_there(admin_client: Client) -> None:
    for name in ("otp_totp/totpdevice", "otp_static/staticdevice", "axes/accessattempt"):
        assert admin_client.get(f"/admin/{name}/").status_code == 404


def test_command_for_a_locked_out_owner() -> None:
    person = visitor(username="ann", is_enrolled=True)
    for _ in range(5):
        Visitor(person.user).password_step("wrong")
    said_by_command = io.StringIO()
    call_command("reset_two_factor", "ann", stdout=said_by_command)
    assert said_by_command.getvalue() == (
        "The second factor of ann is reset; every session is ended.\nForgot 5 failed sign-ins.\n"
    )
    assert stored() == ([], [])
    assert actions()[-2:] == ["two_factor.reset", "sign_in.lock_lifted"]
    assert not person.is_in()
    person.password_step()
    assert person.is_in()


def test_command_for_nobody_changes_nothing() -> None:
    visitor(username="ann", is_enrolled=True)
    before = stored()
    with pytest.raises(CommandError, match="there is no user 'bob'"):
        call_command("reset_two_factor", "bob")
    assert stored() == before
