"""A second factor that is required: of everybody by the setting, of one person by the policy. Who
has none opens the pages for enrolling and nothing else."""

from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from apps.audit.models import AuditEvent
from apps.sign_in.exceptions import SessionOver
from apps.sign_in.models import SignInState
from apps.sign_in.services.sessions import session_person
from tests.authenticator import code_of
from tests.factories import RouteFactory
from tests.integration.console.pages import actions
from tests.integration.sign_in.people import ENROL, INDEX, PASSWORD, Visitor, act, said, visitor
from tests.rows import all_of

pytestmark = pytest.mark.django_db

PEOPLE = "/admin/sign_in/person/"


@pytest.fixture
def required(settings: Any) -> None:
    settings.TWO_FACTOR_REQUIRED = True


def admin_pages() -> list[str]:
    """Every page of the admin whose address takes no key."""
    patterns: list[Any] = admin.site.get_urls()
    found = []

    def walk(entries: list[Any], prefix: str) -> None:
        for entry in entries:
            route = prefix + str(entry.pattern)
            if isinstance(entry, URLPattern):
                if "<" not in route and "(" not in route:
                    found.append(f"/admin/{route}".replace("^", "").replace("$", ""))
            else:
                walk(entry.url_patterns, route)

    walk(patterns, "")
    return sorted(set(found))


def test_off_by_default_here() -> None:
    person = visitor()
    assert person.is_in()


def test_every_page_leads_to_enrolment(required: None) -> None:
    person = visitor(is_superuser=True)
    pages = [page for page in admin_pages() if page not in (ENROL, "/admin/logout/")]
    assert len(pages) > 40
    assert {"/admin/", "/admin/playground/", "/admin/rbac/user/", "/admin/account/"} <= set(pages)
    for page in [*pages, "/docs/api", "/"]:
        answer = person.client.get(page)
        assert (answer.status_code, answer["Location"]) == (302, ENROL), page


def test_every_change_is_refused(required: None) -> None:
    person = visitor(is_superuser=True)
    route = RouteFactory(name="kept")
    n_events = all_of(AuditEvent).count()
    for page in (
        f"/admin/routing/route/{route.pk}/delete/",
        "/admin/account/sign-out-everywhere/",
        "/admin/password_change/",
        reverse("admin:sign_in_person_release", args=[person.user.pk]),
    ):
        assert person.client.post(page, {"post": "yes"}).status_code == 403
    assert all_of(type(route)).filter(name="kept").exists()
    assert all_of(AuditEvent).count() == n_events


def test_pages_of_the_whole_stack_stand_behind_the_gate() -> None:
    """Whoever adds a page outside the admin gets the gate too: it is a middleware."""
    order = settings.MIDDLEWARE
    assert order.index("apps.sign_in.middleware.SessionGate") > order.index(
        "django.contrib.auth.middleware.AuthenticationMiddleware"
    )
    assert get_resolver().resolve("/admin/account/").view_name == "admin:account"


def test_enrolling_opens_everything(required: None) -> None:
    person = visitor()
    page = person.client.get(ENROL)
    assert "A second factor is required of you." in said(page)
    assert "Playground" not in said(page)
    person.enrol()
    assert person.is_in()
    again = Visitor(person.user)
    again.password_step()
    assert not again.is_in()
    assert again.code_step(code_of(person.secret)).status_code == 302
    assert again.is_in()


def test_who_must_enrol_can_sign_out(required: None) -> None:
    person = visitor()
    assert person.client.post("/admin/logout/").status_code == 200
    assert person.client.get(INDEX)["Location"] == "/admin/login/?next=/admin/"


def test_what_is_required_is_not_removed(settings: Any) -> None:
    person = visitor(is_enrolled=True)
    settings.TWO_FACTOR_REQUIRED = True
    answer = person.client.post(
        "/admin/account/two-factor/remove/",
        {"password": PASSWORD, "code": code_of(person.secret)},
    )
    assert "A second factor is required of you; replace it instead." in said(answer)
    assert person.is_in()
    assert "two_factor.removed" not in actions()


def test_of_one_person(admin_client: Client) -> None:
    person, other = visitor(), visitor()
    act(admin_client, "require", person.user.pk)
    assert person.client.get(INDEX)["Location"] == ENROL
    assert other.is_in()
    event = all_of(AuditEvent).order_by("-id")[0]
    assert (event.action, event.changes) == (
        "two_factor.policy_changed",
        {"is_required": [False, True]},
    )
    act(admin_client, "require", person.user.pk)  # says it again, changes nothing
    assert actions().count("two_factor.policy_changed") == 1
    act(admin_client, "release", person.user.pk)
    assert person.is_in()
    assert not SignInState.objects.get(user=person.user).is_two_factor_required


def test_doors_that_keep_a_connection_ask_the_same(required: None) -> None:
    person = visitor()
    key = person.client.session.session_key
    with pytest.raises(SessionOver):
        session_person(str(key))
    person.enrol()
    assert session_person(str(person.client.session.session_key)) == person.user
    with pytest.raises(SessionOver):  # enrolling gave the session another key
        session_person(str(key))
