"""What people have by their groups at a real provider, and what its second factor is worth here."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM
from apps.core.exceptions import AppError
from apps.rbac.models import Role, RoleGrant, User
from apps.rbac.selectors import identities_in_force, principal_of_secret
from apps.rbac.services import mapped_grants_apply, role_grant
from apps.sign_in.models import ProviderIdentity
from apps.tenants.models import Membership
from tests.authenticator import code_of
from tests.factories import ApiTokenFactory, TenantFactory, UserFactory
from tests.identity_provider.running import IdentityProvider
from tests.integration.console.pages import actions
from tests.integration.sign_in.coming_in import START, come_in, is_in, mapping
from tests.integration.sign_in.people import (
    CODE,
    ENROL,
    INDEX,
    codes_become_fresh,
    said,
    shown_codes,
    shown_secret,
    unthrottle,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


class TestGroups:
    def test_grants_follow_the_groups_and_those_by_hand_stay(self, idp: IdentityProvider) -> None:
        tenant = TenantFactory()
        mapping("a", "developer", tenant)
        mapping("b", "viewer", tenant)
        idp.person("s-20", preferred_username="kim", groups=["a", "b"])
        come_in(idp, "s-20", Client())
        membership = all_of(Membership).get()
        role_grant(
            role=Role.objects.get(slug="developer"), membership=membership, by=None, actor=SYSTEM
        )
        assert all_of(RoleGrant).count() == 3
        idp.person("s-20", preferred_username="kim", groups=["b"])
        come_in(idp, "s-20", Client())
        assert [(g.role.slug, g.mapping_id is None) for g in all_of(RoleGrant).all()] == [
            ("viewer", False), ("developer", True),
        ]  # fmt: skip
        client = Client()
        idp.person("s-20", preferred_username="kim", groups=[])
        assert come_in(idp, "s-20", client).status_code == 302
        assert is_in(client)  # by what was given by hand
        assert [grant.role.slug for grant in all_of(RoleGrant).all()] == ["developer"]

    def test_without_groups_everything_is_lost_at_once(self, idp: IdentityProvider) -> None:
        """Sessions elsewhere are over; tokens stop, with the JWTs that came of them."""
        tenant = TenantFactory()
        mapping("a", "developer", tenant)
        idp.person("s-21", preferred_username="lea", groups=["a"])
        browser = Client()
        come_in(idp, "s-21", browser)
        user = User.objects.get()
        token = ApiTokenFactory(tenant=tenant, owner=user)
        principal = principal_of_secret(token.secret)
        assert identities_in_force([principal.identity]) == {principal.identity}

        idp.person("s-21", preferred_username="lea", groups=["z"])
        again = Client()
        answer = come_in(idp, "s-21", again)
        assert answer.status_code == 403
        assert "None of your groups gives you access any more" in said(answer)
        assert not is_in(again)
        assert not is_in(browser)
        assert (all_of(RoleGrant).count(), all_of(Membership).count()) == (0, 0)
        assert identities_in_force([principal.identity]) == set()
        with pytest.raises(AppError):
            principal_of_secret(token.secret)
        assert actions()[-3:] == ["role.withdrawn", "membership.removed", "sign_in.refused"]

        idp.person("s-21", preferred_username="lea", groups=["a"])
        assert come_in(idp, "s-21", again).status_code == 302
        assert is_in(again)

    @pytest.mark.parametrize(("keep_days", "is_kept"), [(89, False), (91, True), (0, True)])
    def test_of_who_never_comes_again_they_run_out(
        self, idp: IdentityProvider, settings: Any, keep_days: int, is_kept: bool
    ) -> None:
        settings.OIDC_GROUPS_KEEP_DAYS = keep_days
        tenant = TenantFactory()
        mapping("a", "developer", tenant)
        mapping("a", "viewer")
        for subject in ("s-23", "s-24"):
            idp.person(subject, preferred_username=subject, groups=["a"])
            come_in(idp, subject, Client())
        gone = ProviderIdentity.objects.filter(subject="s-23")
        gone.update(seen_at=timezone.now() - timedelta(days=90))
        token = ApiTokenFactory(tenant=tenant, owner=gone.get().user)
        call_command("prune", "--dry-run")
        assert all_of(RoleGrant).count() == 4
        call_command("prune")
        assert all_of(RoleGrant).count() == (4 if is_kept else 2)
        with nullcontext() if is_kept else pytest.raises(AppError):
            principal_of_secret(token.secret)
        come_in(idp, "s-23", Client())
        assert all_of(RoleGrant).count() == 4
        assert gone.get().seen_at > timezone.now() - timedelta(minutes=5)

    def test_two_sign_ins_at_once_give_once(self, transactional_db: None) -> None:
        mapping("a", "developer", TenantFactory())
        mapping("a", "viewer")
        user = UserFactory()

        def apply(_: int) -> None:
            try:
                mapped_grants_apply(user=user, groups=["a"], actor=SYSTEM)
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(apply, range(4)))
        assert (all_of(RoleGrant).count(), all_of(Membership).count()) == (2, 1)

    def test_the_review_says_by_which_group(
        self, idp: IdentityProvider, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tenant = TenantFactory(slug="acme")
        mapping("engineers", "developer", tenant)
        idp.person("s-22", preferred_username="max", groups=["engineers"])
        come_in(idp, "s-22", Client())
        call_command("access_review", "--user", "max")
        why = "role Developer as a member, by group engineers of the provider"
        assert f'person,max,routing.use_route,tenant:acme,"{why}",True' in capsys.readouterr().out


class TestSecondFactor:
    def enrolled(self, idp: IdentityProvider, subject: str, **claims: Any) -> tuple[Client, str]:
        """Somebody who came by the provider and enrolled an authenticator here."""
        mapping("staff", "viewer")
        idp.person(subject, preferred_username="nat", groups=["staff"], **claims)
        client = Client()
        come_in(idp, subject, client)
        page = client.get(ENROL)
        assert "Your password" not in said(page)  # there is none
        secret = shown_secret(page)
        answer = client.post(ENROL, {"new_code": code_of(secret)})
        assert len(shown_codes(answer)) == 10
        codes_become_fresh(User.objects.get())
        return client, secret

    def test_ours_is_asked_for(self, idp: IdentityProvider) -> None:
        _, secret = self.enrolled(idp, "s-30", amr=["pwd", "mfa"])
        client = Client()
        answer = come_in(idp, "s-30", client, f"{START}?next=/admin/account/")
        assert answer["Location"] == f"{CODE}?next=%2Fadmin%2Faccount%2F"
        assert not is_in(client)
        assert client.post(CODE, {"code": "000000"}).status_code == 200
        assert not is_in(client)
        unthrottle()
        answer = client.post(answer["Location"], {"code": code_of(secret)})
        assert answer["Location"] == "/admin/account/"
        assert is_in(client)
        assert all_of(AuditEvent).latest("id").changes == {
            "second_factor": "totp", "by": "single sign-on",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("claims", "stands"),
        [
            ({"amr": ["pwd", "mfa"]}, True),
            ({"acr": "urn:strong"}, True),
            ({"amr": ["pwd"], "acr": "1"}, False),
            ({}, False),
        ],
    )
    def test_the_providers_stands_for_it_where_that_is_set(
        self, idp: IdentityProvider, settings: Any, claims: dict[str, Any], stands: bool
    ) -> None:
        settings.OIDC_SECOND_FACTOR_AMR = ["mfa", "hwk"]
        settings.OIDC_SECOND_FACTOR_ACR = ["urn:strong"]
        settings.TWO_FACTOR_REQUIRED = True
        mapping("staff", "viewer")
        idp.person("s-31", preferred_username="oli", groups=["staff"], **claims)
        client = Client()
        come_in(idp, "s-31", client)
        assert is_in(client) is stands
        if not stands:
            assert client.get(INDEX)["Location"] == ENROL

    def test_enrolling_takes_a_sign_in_of_a_moment_ago(self, idp: IdentityProvider) -> None:
        mapping("staff", "viewer")
        idp.person("s-32", preferred_username="pia", groups=["staff"])
        client = Client()
        come_in(idp, "s-32", client)
        secret = shown_secret(client.get(ENROL))
        session = client.session
        session["sign_in.at"] -= 301
        session.save()
        answer = client.post(ENROL, {"new_code": code_of(secret)})
        assert "Sign out and in again first" in said(answer)
        assert "two_factor.enrolled" not in actions()
