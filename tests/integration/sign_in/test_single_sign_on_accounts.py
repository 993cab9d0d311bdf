"""Single sign-on of people who have an account, and how it ends."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client

from apps.rbac.models import Role, RoleGrant, User
from apps.sign_in.models import ProviderIdentity
from tests.identity_provider.running import IdentityProvider
from tests.integration.console.pages import actions
from tests.integration.sign_in.coming_in import LINK, START, come_back, come_in, is_in, mapping
from tests.integration.sign_in.people import PASSWORD, WRONG, Visitor, act, said, visitor
from tests.rows import all_of

pytestmark = pytest.mark.django_db


class TestAccounts:
    def connect(self, idp: IdentityProvider, person: Visitor, subject: str) -> Any:
        page = person.client.post(LINK, {"password": PASSWORD})
        assert page.status_code == 200
        url = page["Refresh"].partition("url=")[2]
        return come_back(idp, subject, person.client, url)

    def test_a_person_connects_their_own_account(self, idp: IdentityProvider) -> None:
        person = visitor(username="ann")
        idp.person("s-40", preferred_username="ann", groups=[])
        wrong = person.client.post(LINK, {"password": "wrong"})
        assert "Refresh" not in wrong
        assert ProviderIdentity.objects.count() == 0
        assert self.connect(idp, person, "s-40")["Location"] == "/admin/account/"
        assert ProviderIdentity.objects.get().user == person.user
        assert "Connected" in said(person.client.get("/admin/account/"))
        person.user.user_permissions.add(Role.objects.get(slug="viewer").permissions.first())
        client = Client()
        assert come_in(idp, "s-40", client).status_code == 302
        assert is_in(client)

    def test_nobody_connects_whom_somebody_else_is(self, idp: IdentityProvider) -> None:
        ann, bob = visitor(username="ann"), visitor(username="bob")
        idp.person("s-41", groups=[])
        idp.person("s-42", groups=[])
        self.connect(idp, ann, "s-41")
        assert self.connect(idp, bob, "s-41").status_code == 403
        assert self.connect(idp, ann, "s-42").status_code == 403
        identity = ProviderIdentity.objects.get()
        assert (identity.user, identity.subject) == (ann.user, "s-41")

    def test_a_flow_begun_to_connect_signs_nobody_else_in(self, idp: IdentityProvider) -> None:
        """Whoever signed out meanwhile, or is another, connects nothing."""
        ann, bob = visitor(username="ann"), visitor(username="bob")
        idp.person("s-43", groups=[])
        page = ann.client.post(LINK, {"password": PASSWORD})
        url = page["Refresh"].partition("url=")[2]
        session = ann.client.session
        state = {key: value for key, value in session.items() if key.startswith("_state_")}
        other = bob.client.session
        other.update(state)
        other.save()
        assert come_back(idp, "s-43", bob.client, url).status_code == 403
        assert ProviderIdentity.objects.count() == 0

    def test_passwords_can_be_switched_off_for_people_with_single_sign_on(
        self, idp: IdentityProvider, settings: Any
    ) -> None:
        ann, bob = visitor(username="ann"), visitor(username="bob", is_signed_in=False)
        root = visitor(username="root", is_superuser=True)
        for person, subject in ((ann, "s-44"), (root, "s-45")):
            idp.person(subject, groups=[])
            self.connect(idp, person, subject)
        settings.OIDC_PASSWORD_SIGN_IN = False
        ann.client = Client()
        assert WRONG in said(ann.password_step())
        assert not ann.is_in()
        for person in (bob, root):
            person.client = Client()
            assert person.password_step().status_code == 302
            assert person.is_in()

    def test_a_superuser_forgets_who_somebody_is_there(self, idp: IdentityProvider) -> None:
        mapping("staff", "viewer")
        idp.person("s-46", preferred_username="quin", groups=["staff"])
        client = Client()
        come_in(idp, "s-46", client)
        user = User.objects.get()
        outsider, root = visitor(), visitor(is_superuser=True)
        assert act(outsider.client, "disconnect", user.pk).status_code == 403
        assert ProviderIdentity.objects.count() == all_of(RoleGrant).count() == 1
        act(root.client, "disconnect", user.pk)
        assert ProviderIdentity.objects.count() == all_of(RoleGrant).count() == 0
        assert not is_in(client)
        assert actions()[-2:] == ["role.withdrawn", "sign_in.identity_removed"]


class TestSigningOut:
    def test_ends_here_and_at_the_provider(self, idp: IdentityProvider, client: Client) -> None:
        mapping("staff", "viewer")
        idp.person("s-50", preferred_username="rosa", groups=["staff"])
        come_in(idp, "s-50", client)
        answer = client.post("/admin/logout/")
        assert not is_in(client)
        assert "Signed out here" in said(answer)
        url = answer["Refresh"].partition("url=")[2]
        query = {name: value for name, (value,) in parse_qs(urlsplit(url).query).items()}
        assert query["post_logout_redirect_uri"] == "http://testserver/admin/login/"
        there = idp.browser.get(url)
        assert there.status_code == 302, there.text
        assert there.headers["location"].startswith("http://testserver/admin/login/")
        # And it has forgotten the browser: it would ask for the password again.
        again = idp.browser.get(Client().get(START)["Location"])
        assert again.headers["location"].startswith("/login/")

    def test_whoever_came_by_password_signs_out_here_alone(self, idp: IdentityProvider) -> None:
        person = visitor()
        assert "Refresh" not in person.client.post("/admin/logout/")
        assert not person.is_in()
