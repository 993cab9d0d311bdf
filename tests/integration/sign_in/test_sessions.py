"""How long a session lasts, and what ends it."""

import subprocess
import sys
from typing import Any

import pytest
from django.test import Client

from apps.audit.models import AuditEvent
from apps.rbac.models import User
from apps.sign_in.exceptions import SessionOver
from apps.sign_in.selectors import AT_KEY, EPOCH_KEY, SEEN_KEY
from apps.sign_in.services.sessions import session_person
from tests.authenticator import code_of
from tests.integration.console.pages import actions
from tests.integration.sign_in.people import INDEX, PASSWORD, Visitor, act, visitor
from tests.processes import ROOT
from tests.rows import all_of

pytestmark = pytest.mark.django_db

OUT = "/admin/login/?next=/admin/"


def age(person: Visitor, key: str, seconds: int) -> None:
    session = person.client.session
    session[key] -= seconds
    session.save()


def seen_at(person: Visitor) -> int:
    return int(person.client.session[SEEN_KEY])


def test_ends_so_long_after_signing_in(settings: Any) -> None:
    person = visitor()
    age(person, AT_KEY, settings.SESSION_ABSOLUTE_S - 60)
    assert person.is_in()
    age(person, AT_KEY, 60)
    assert person.client.get(INDEX)["Location"] == OUT
    assert "_auth_user_id" not in person.client.session


def test_ends_when_it_is_not_used(settings: Any) -> None:
    person = visitor()
    age(person, SEEN_KEY, settings.SESSION_IDLE_S - 60)
    assert person.is_in()  # and this was a use
    age(person, SEEN_KEY, settings.SESSION_IDLE_S - 60)
    assert person.is_in()
    age(person, SEEN_KEY, settings.SESSION_IDLE_S)
    assert person.client.get(INDEX)["Location"] == OUT


def test_pages_that_renew_themselves_are_no_use() -> None:
    person = visitor()
    age(person, SEEN_KEY, 600)
    before = seen_at(person)
    for page in ("/admin/overview/", "/admin/playground/models/"):
        assert person.client.get(page).status_code == 200
    assert seen_at(person) == before
    person.client.get("/admin/account/")
    assert seen_at(person) >= before + 600


def test_without_its_marks_it_is_over() -> None:
    """Such as one from before there were any."""
    for key in (AT_KEY, SEEN_KEY, EPOCH_KEY):
        person = visitor()
        session = person.client.session
        del session[key]
        session.save()
        assert person.client.get(INDEX)["Location"] == OUT


def test_signing_in_gives_it_a_new_key(client: Client) -> None:
    client.get("/admin/login/")
    session = client.session
    session["planted"] = "by somebody else"
    session.save()
    client.cookies["sessionid"] = session.session_key
    person = Visitor(visitor(is_signed_in=False).user, client=client)
    person.password_step()
    assert client.session.session_key != session.session_key
    assert person.is_in()
    fresh = Client()
    fresh.cookies["sessionid"] = session.session_key
    assert fresh.get(INDEX).status_code == 302


def test_both_steps_give_it_a_new_key() -> None:
    person = visitor(is_enrolled=True, is_signed_in=False)
    keys = [person.client.session.session_key]
    person.password_step()
    keys.append(person.client.session.session_key)
    person.code_step(code_of(person.secret))
    keys.append(person.client.session.session_key)
    assert len(set(keys)) == 3
    assert "sign_in.pending" not in person.client.session


def test_sign_out_everywhere_else() -> None:
    here = visitor()
    there, other = Visitor(here.user), visitor()
    there.password_step()
    assert there.is_in()
    assert here.client.post("/admin/account/sign-out-everywhere/").status_code == 302
    assert here.is_in()
    assert not there.is_in()
    assert other.is_in()
    event = all_of(AuditEvent).order_by("-id")[0]
    assert (event.action, event.changes) == ("sign_in.sessions_ended", {"but_one": True})
    there.password_step()
    assert there.is_in()


def test_looking_signs_nobody_out() -> None:
    here = visitor()
    there = Visitor(here.user)
    there.password_step()
    answer = here.client.get("/admin/account/sign-out-everywhere/")
    assert answer["Location"] == "/admin/account/"
    assert there.is_in()


def test_a_superuser_signs_somebody_out(admin_client: Client) -> None:
    person, other = visitor(), visitor()
    act(admin_client, "sign_out", person.user.pk)
    assert not person.is_in()
    assert other.is_in()
    assert admin_client.get(INDEX).status_code == 200
    event = all_of(AuditEvent).order_by("-id")[0]
    assert (event.action, event.actor_label) == ("sign_in.sessions_ended", "admin")


def test_ones_own_new_password_ends_the_others() -> None:
    here = visitor()
    there = Visitor(here.user)
    there.password_step()
    form = {
        "old_password": PASSWORD,
        "new_password1": "another horse 9",
        "new_password2": "another horse 9",
    }
    assert here.client.post("/admin/password_change/", form).status_code == 302
    assert here.is_in()
    assert not there.is_in()


def test_a_password_that_somebody_sets_ends_all(admin_client: Client) -> None:
    person = visitor()
    new = {"password1": "another horse 9", "password2": "another horse 9"}
    admin_client.post(f"/admin/rbac/user/{person.user.pk}/password/", new)
    assert not person.is_in()


class TestKeptConnections:
    """What the WebSocket asks at its requests."""

    def test_a_live_session_is_its_person_and_is_used(self) -> None:
        person = visitor()
        age(person, SEEN_KEY, 600)
        before = seen_at(person)
        assert session_person(str(person.client.session.session_key)) == person.user
        assert seen_at(person) >= before + 600

    @pytest.mark.parametrize("end", ["sign out", "password", "everywhere", "off", "idle", "none"])
    def test_ends_with_the_session(self, end: str, settings: Any) -> None:
        person = visitor()
        key = str(person.client.session.session_key)
        user = User.objects.get(pk=person.user.pk)
        match end:
            case "sign out":
                person.client.post("/admin/logout/")
            case "password":
                user.set_password("another horse 9")
                user.save()
            case "everywhere":
                there = Visitor(user)
                there.password_step()
                there.client.post("/admin/account/sign-out-everywhere/")
            case "off":
                User.objects.filter(pk=user.pk).update(is_active=False)
            case "idle":
                age(person, SEEN_KEY, settings.SESSION_IDLE_S)
            case "none":
                key = "x" * 32
        n_events = all_of(AuditEvent).count()
        with pytest.raises(SessionOver):
            session_person(key)
        assert all_of(AuditEvent).count() == n_events


def test_what_is_right_in_production() -> None:
    code = (
        "from django.conf import settings as s;"
        "print(s.TWO_FACTOR_REQUIRED, s.SESSION_ABSOLUTE_S, s.SESSION_IDLE_S, s.SESSION_COOKIE_AGE,"
        "s.SESSION_COOKIE_SECURE, s.SESSION_COOKIE_HTTPONLY, s.SESSION_COOKIE_SAMESITE,"
        "s.CSRF_COOKIE_SECURE)"
    )
    env = {
        "DJANGO_SETTINGS_MODULE": "config.settings.production",
        "SECRET_KEY": "only-for-this-test-0123456789-abcdefghijklmnopqrstuvwxyz",
        "ALLOWED_HOSTS": "example.org",
        "DATABASE_URL": "postgresql://nobody@localhost/nothing",
        "CACHE_URL": "redis://localhost",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    }
    for extra, said in (
        ({}, "True 43200 3600 43200 True True Lax True"),
        ({"TWO_FACTOR_REQUIRED": "0"}, "False 43200 3600 43200 True True Lax True"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**env, **extra},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == said


def test_the_cookie_is_not_for_scripts_or_other_sites() -> None:
    person = visitor()
    cookie = person.client.cookies["sessionid"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    assert "sign_in.succeeded" in actions()
