"""The pages of API tokens."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.rbac.models import ApiToken, User
from apps.rbac.selectors import principal_of_secret
from tests.factories import (
    ApiTokenFactory,
    TenantFactory,
)
from tests.integration.console.pages import actions, messages, staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db


class TestTokens:
    def test_issue_shows_the_secret_once_and_keeps_it_nowhere(
        self, admin_client: Client, admin_user: User
    ) -> None:
        tenant = TenantFactory()
        response = admin_client.post(
            reverse("admin:rbac_apitoken_add"),
            {"tenant": tenant.pk, "name": "ci", "scopes": ["inference"]},
        )
        assert response.status_code == 200
        assert "no-store" in response["Cache-Control"]
        found = re.search(r"sk-nano-[\w-]{43}", response.content.decode())
        assert found is not None
        secret = found[0]
        assert principal_of_secret(secret).tenant_id == tenant.pk
        token = all_of(ApiToken).get()
        assert (token.created_by, token.owner, token.scopes) == (admin_user, None, ["inference"])
        event = all_of(AuditEvent).values().get()
        assert (event["action"], event["actor_id"]) == ("api_token.issued", admin_user.pk)
        later = [
            admin_client.get(reverse("admin:rbac_apitoken_changelist")),
            admin_client.get(reverse("admin:rbac_apitoken_change", args=[token.pk])),
        ]
        assert all(secret not in page.content.decode() for page in later)
        assert secret not in f"{event}{all_of(ApiToken).values().get()}{dict(admin_client.session)}"

    def test_issue_refused_by_the_service_is_a_message_and_no_token(
        self, admin_client: Client
    ) -> None:
        past = timezone.now() - timedelta(days=1)
        url = reverse("admin:rbac_apitoken_add")
        response = admin_client.post(
            url,
            {
                "tenant": TenantFactory().pk,
                "name": "ci",
                "scopes": ["inference"],
                "expires_at_0": f"{past:%Y-%m-%d}",
                "expires_at_1": "00:00:00",
            },
        )
        assert (response.status_code, response["Location"]) == (302, url)
        assert messages(admin_client, url) == ["The time of expiry lies in the past."]
        assert not all_of(ApiToken).exists()
        assert actions() == []

    def test_a_look_at_the_dialog_revokes_nothing_and_its_button_does(
        self, admin_client: Client
    ) -> None:
        token = ApiTokenFactory()
        url = reverse("admin:rbac_apitoken_revoke", args=[token.pk])
        assert "Revoke this token?" in admin_client.get(url).content.decode()
        assert all_of(ApiToken).get().revoked_at is None
        response = admin_client.post(
            url, {"_form_submitted": "True"}, headers={"HX-Request": "true"}
        )
        assert response["HX-Redirect"] == reverse("admin:rbac_apitoken_changelist")
        assert all_of(ApiToken).get().revoked_at is not None
        assert actions() == ["api_token.revoked"]

    def test_revoke_needs_permission(self) -> None:
        token = ApiTokenFactory()
        client = staff("view_apitoken")
        url = reverse("admin:rbac_apitoken_revoke", args=[token.pk])
        assert client.post(url, {"_form_submitted": "True"}).status_code == 403
        assert all_of(ApiToken).get().revoked_at is None
        assert actions() == []

    def test_prefix_digest_and_tenant_are_not_for_editing(self, admin_client: Client) -> None:
        token = ApiTokenFactory(name="ci")
        before = all_of(ApiToken).values("prefix", "digest", "tenant_id").get()
        admin_client.post(
            reverse("admin:rbac_apitoken_change", args=[token.pk]),
            {
                "name": "new",
                "scopes": ["inference"],
                "prefix": "x",
                "digest": "y",
                "tenant": TenantFactory().pk,
            },
        )
        assert all_of(ApiToken).get().name == "new"
        assert all_of(ApiToken).values("prefix", "digest", "tenant_id").get() == before

    @pytest.mark.parametrize("state", ["live", "expired", "revoked"])
    def test_filter_by_state(self, admin_client: Client, state: str) -> None:
        now = timezone.now()
        tokens = {
            "live": [ApiTokenFactory(), ApiTokenFactory(expires_at=now + timedelta(days=1))],
            "expired": [ApiTokenFactory(expires_at=now - timedelta(days=1))],
            "revoked": [ApiTokenFactory(revoked_at=now, expires_at=now - timedelta(days=1))],
        }
        response = admin_client.get(reverse("admin:rbac_apitoken_changelist"), {"state": state})
        assert set(response.context["cl"].result_list) == set(tokens[state])
