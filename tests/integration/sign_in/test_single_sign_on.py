"""Single sign-on through a real provider, as a browser meets it: who comes in, and who does not."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.sessions.models import Session
from django.test import Client

from apps.audit.models import AuditEvent
from apps.rbac.models import RoleGrant, User
from apps.sign_in.models import ProviderIdentity
from tests.factories import GroupMappingFactory, TenantFactory, UserFactory
from tests.identity_provider.running import IdentityProvider
from tests.integration.console.pages import actions
from tests.integration.isolation.urls import walk
from tests.integration.sign_in.coming_in import LINK, START, come_back, come_in, is_in, mapping
from tests.integration.sign_in.people import INDEX, LOGIN, said
from tests.rows import all_of

pytestmark = pytest.mark.django_db


class TestWithoutAProvider:
    def test_there_is_no_page_and_no_button(self, client: Client) -> None:
        nothing = client.get("/admin/no-such-page/")
        for page in (START, f"{START}callback/", LINK):
            assert client.get(page)["Location"] == nothing["Location"].replace(
                "/admin/no-such-page/", page
            )
        assert (
            client.post(f"{START}logout/").status_code
            == client.post("/admin/no-such-page/").status_code
        )
        assert "single sign-on" not in said(client.get(LOGIN)).lower()
        assert not [name for _, name in _names() if name and name.startswith("sso_")]


def _names() -> list[tuple[str, str | None]]:
    return [(route, pattern.name) for route, pattern in walk("config.urls")]


class TestComingIn:
    def test_its_pages_are_these(self, idp: IdentityProvider) -> None:
        """They name nobody's things; who is not signed in reaches all but the last."""
        assert {name for _, name in _names() if name and name.startswith("sso_")} == {
            "sso_start", "sso_callback", "sso_logout", "sso_link",
        }  # fmt: skip

    def test_first_sign_in_makes_the_person_their_groups_say(
        self, idp: IdentityProvider, client: Client
    ) -> None:
        tenant = TenantFactory(slug="acme")
        mapping("engineers", "developer", tenant)
        mapping("engineers", "viewer")
        mapping("others", "owner")
        idp.person(
            "s-1", preferred_username="ann", email="ann@example.com", email_verified=True,
            groups=["engineers", "unheard-of"],
        )  # fmt: skip
        page = said(client.get(f"{LOGIN}?next=/admin/account/"))
        assert "Sign in with Acme ID" in page
        answer = come_in(idp, "s-1", client, f"{START}?next=/admin/account/")
        assert (answer.status_code, answer["Location"]) == (302, "/admin/account/")
        assert is_in(client)
        user = User.objects.get(username="ann")
        assert (user.email, user.is_staff, user.is_superuser) == ("ann@example.com", True, False)
        assert not user.has_usable_password()
        identity = ProviderIdentity.objects.get()
        assert (identity.user, identity.issuer, identity.subject) == (user, idp.issuer, "s-1")
        assert {str(grant) for grant in all_of(RoleGrant).all()} == {
            f"Developer of ann in {tenant}", "Viewer of ann everywhere",
        }  # fmt: skip
        assert actions() == [
            "user.created", "sign_in.identity_linked", "membership.added", "role.granted",
            "role.granted", "sign_in.succeeded",
        ]  # fmt: skip
        assert all_of(AuditEvent).latest("id").changes == {
            "second_factor": None, "by": "single sign-on",
        }  # fmt: skip

    def test_roles_are_given_in_the_order_of_their_mappings(
        self, idp: IdentityProvider, client: Client
    ) -> None:
        for pk, role in ((9, "developer"), (16, "viewer")):  # a set of these begins with 16
            GroupMappingFactory(pk=pk, group="engineers", role=role)
        idp.person("s-1b", preferred_username="fay", groups=["engineers"])
        come_in(idp, "s-1b", client)
        given = all_of(AuditEvent).filter(action="role.granted").order_by("id")
        assert [event.changes["role"] for event in given] == ["developer", "viewer"]

    def test_the_same_subject_is_the_same_person_whatever_it_is_called(
        self, idp: IdentityProvider
    ) -> None:
        mapping("staff", "viewer")
        idp.person("s-2", preferred_username="bea", groups=["staff"])
        come_in(idp, "s-2", Client())
        idp.person("s-2", preferred_username="renamed", groups=["staff"])
        client = Client()
        come_in(idp, "s-2", client)
        assert is_in(client)
        assert User.objects.get().username == "bea"

    def test_another_subject_with_the_same_name_or_address_is_not(
        self, idp: IdentityProvider, client: Client
    ) -> None:
        mapping("staff", "viewer")
        UserFactory(username="Cy", email="cy@example.com", is_staff=True)
        idp.person(
            "s-3", preferred_username="cy", email="cy@example.com", email_verified=True,
            groups=["staff"],
        )  # fmt: skip
        answer = come_in(idp, "s-3", client)
        assert answer.status_code == 403
        assert "There is an account cy here already" in said(answer)
        assert not is_in(client)
        assert (User.objects.count(), ProviderIdentity.objects.count()) == (1, 0)
        assert all_of(RoleGrant).count() == 0
        event = all_of(AuditEvent).get()
        assert (event.action, event.changes["reason"]) == ("sign_in.refused", "name_taken")

    def test_in_no_group_that_is_mapped_is_refused(
        self, idp: IdentityProvider, client: Client
    ) -> None:
        mapping("staff", "viewer")
        idp.person("s-4", preferred_username="dan", groups=["guests"])
        answer = come_in(idp, "s-4", client)
        assert answer.status_code == 403
        assert "You have no account here" in said(answer)
        assert "no-store" in answer["Cache-Control"]
        assert not is_in(client)
        assert (User.objects.count(), ProviderIdentity.objects.count()) == (0, 0)
        assert actions() == ["sign_in.refused"]

    @pytest.mark.parametrize(
        ("claims", "is_admitted"),
        [
            ({"email": "eve@Example.com", "email_verified": True}, True),
            ({"email": "eve@example.com", "email_verified": False}, False),
            ({"email": "eve@example.com"}, False),
            ({"email": "eve@example.com", "email_verified": "true"}, False),
            ({"email": "eve@sub.example.com", "email_verified": True}, False),
            ({"email": "eve@example.com.evil.test", "email_verified": True}, False),
            ({"email": "example.com", "email_verified": True}, False),
            ({"preferred_username": "eve@example.com"}, False),
        ],
    )
    def test_a_domain_lets_in_by_a_verified_address_alone(
        self, idp: IdentityProvider, settings: Any, claims: dict[str, Any], is_admitted: bool
    ) -> None:
        settings.OIDC_ALLOWED_DOMAINS = ["example.com"]
        idp.person("s-5", groups=[], **{"preferred_username": "eve", **claims})
        client = Client()
        answer = come_in(idp, "s-5", client)
        assert answer.status_code == (302 if is_admitted else 403)
        assert is_in(client) is is_admitted
        assert User.objects.count() == int(is_admitted)

    def test_a_lock_of_the_password_is_none(self, idp: IdentityProvider, settings: Any) -> None:
        """Else whoever guesses at a name keeps its owner out of both ways."""
        mapping("staff", "viewer")
        idp.person("s-11", preferred_username="jo", groups=["staff"])
        come_in(idp, "s-11", Client())
        form = {"username": "jo", "password": "guess"}
        answers = [Client().post(LOGIN, form).status_code for _ in range(6)]
        assert answers[-1] == 429
        client = Client()
        assert come_in(idp, "s-11", client).status_code == 302
        assert is_in(client)

    def test_who_is_switched_off_stays_out(self, idp: IdentityProvider) -> None:
        mapping("staff", "viewer")
        idp.person("s-6", preferred_username="fay", groups=["staff"])
        come_in(idp, "s-6", Client())
        for fields in ({"is_active": False}, {"is_staff": False}):
            User.objects.update(is_active=True, is_staff=True)
            User.objects.update(**fields)
            client = Client()
            answer = come_in(idp, "s-6", client)
            assert answer.status_code == 403
            assert "switched off" in said(answer)
            assert not is_in(client)

    def test_the_session_is_a_new_one(self, idp: IdentityProvider, client: Client) -> None:
        mapping("staff", "viewer")
        idp.person("s-7", preferred_username="gus", groups=["staff"])
        there = client.get(START)["Location"]
        planted = client.session
        planted["planted"] = "by somebody else"
        planted.save()
        come_back(idp, "s-7", client, there)
        assert is_in(client)
        assert client.session.session_key != planted.session_key
        assert "planted" not in client.session
        assert not Session.objects.filter(session_key=planted.session_key).exists()

    @pytest.mark.parametrize(
        "elsewhere",
        ["https://evil.test/", "//evil.test/", "https:evil.test", "/\\evil.test", "javascript:1"],
    )
    def test_next_leads_nowhere_else(
        self, idp: IdentityProvider, client: Client, elsewhere: str
    ) -> None:
        mapping("staff", "viewer")
        idp.person("s-8", preferred_username="hal", groups=["staff"])
        there = client.get(START, {"next": elsewhere})
        answer = come_back(idp, "s-8", client, there["Location"])
        assert answer["Location"] == INDEX

    def test_a_denied_request_is_told_as_such(self, idp: IdentityProvider, client: Client) -> None:
        there = client.get(START)["Location"]
        state = parse_qs(urlsplit(there).query)["state"][0]
        answer = client.get(
            "/admin/login/sso/callback/",
            {"error": "access_denied", "error_description": "<b>no</b>", "state": state},
        )
        assert answer.status_code == 403
        assert "The provider did not let you in." in said(answer)
        assert "<b>no</b>" not in answer.content.decode()

    def test_a_code_works_once(self, idp: IdentityProvider, client: Client) -> None:
        """Twice in one browser, and in another one that has its own state."""
        mapping("staff", "viewer")
        idp.person("s-9", preferred_username="ida", groups=["staff"])
        back = urlsplit(idp.sign_in(client.get(START)["Location"], "s-9"))
        thief = Client()
        thiefs_state = parse_qs(urlsplit(thief.get(START)["Location"]).query)["state"][0]
        assert client.get(f"{back.path}?{back.query}").status_code == 302
        replayed = client.get(f"{back.path}?{back.query}")
        assert replayed.status_code == 403
        code = parse_qs(back.query)["code"][0]
        stolen = thief.get(back.path, {"code": code, "state": thiefs_state})
        assert stolen.status_code == 403
        assert not is_in(thief)

    def test_a_stolen_code_is_worth_nothing_without_the_browsers_secret(
        self, idp: IdentityProvider
    ) -> None:
        """PKCE: the code was never used, and the thief has a flow of their own."""
        mapping("staff", "viewer")
        idp.person("s-10", preferred_username="jim", groups=["staff"])
        code = parse_qs(urlsplit(idp.sign_in(Client().get(START)["Location"], "s-10")).query)[
            "code"
        ]
        thief = Client()
        state = parse_qs(urlsplit(thief.get(START)["Location"]).query)["state"][0]
        answer = thief.get("/admin/login/sso/callback/", {"code": code[0], "state": state})
        assert answer.status_code == 403
        assert not is_in(thief)
        assert User.objects.count() == 0
