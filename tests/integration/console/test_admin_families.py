"""The page of access tokens: who sees an exchange, and who ends it."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.rbac.models import TokenFamily
from apps.rbac.selectors import identities_in_force
from apps.rbac.types import Identity
from tests.factories import ApiTokenFactory, MembershipFactory, TokenFamilyFactory
from tests.integration.console.pages import actions
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LIST = reverse("admin:rbac_tokenfamily_changelist")


def page_of(role: str, family: TokenFamily | None) -> Client:
    """Of somebody with a role in the tenant of a family, or in another one."""
    fields: dict[str, Any] = {} if family is None else {"tenant": family.api_token.tenant}
    user = MembershipFactory(role=role, user__is_staff=True, **fields).user
    client = Client()
    client.force_login(user)
    return client


def revoke(client: Client, family: TokenFamily) -> int:
    url = reverse("admin:rbac_tokenfamily_revoke", args=[family.pk])
    return int(client.post(url, {"_form_submitted": "True"}).status_code)


@pytest.mark.parametrize("role", ["owner", "admin", "developer"])
def test_who_may_change_the_api_token_ends_it(role: str) -> None:
    family, other = TokenFamilyFactory(), TokenFamilyFactory()
    client = page_of(role, family)
    shown = client.get(LIST).content.decode()
    assert family.public_id in shown and other.public_id not in shown
    assert revoke(client, family) == 302
    family.refresh_from_db()
    assert family.revoked_at is not None
    identity = Identity(family.tenant_id, family.api_token_id, None, family.pk)
    assert identities_in_force([identity]) == set()
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_kind, event.tenant_id) == (
        "jwt.revoked", "user", family.tenant_id,
    )  # fmt: skip
    revoke(client, family)
    assert actions() == ["jwt.revoked"]


@pytest.mark.parametrize(
    ("role", "is_member"), [("auditor", True), ("viewer", True), ("owner", False)]
)
def test_nobody_else_does(role: str, is_member: bool) -> None:
    family = TokenFamilyFactory()
    before = list(all_of(TokenFamily).values())
    client = page_of(role, family if is_member else None)
    assert revoke(client, family) == 403
    assert list(all_of(TokenFamily).values()) == before
    assert actions() == []


def test_it_is_over_with_its_api_token() -> None:
    family = TokenFamilyFactory(api_token=ApiTokenFactory())
    assert family.is_live
    family.api_token.revoked_at = family.created_at
    assert not family.is_live
