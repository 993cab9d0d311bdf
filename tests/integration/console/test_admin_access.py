"""The pages of users, tenants, routes and records: each goes through its service, or refuses."""

from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.rbac.models import ApiToken, User
from apps.tenants.models import EndUser, Plan, Tenant
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    PlanFactory,
    RouteFactory,
    TenantFactory,
    UsageRecordFactory,
    UserFactory,
)
from tests.integration.console.pages import actions, inline, messages, staff, targets_form
from tests.rows import all_of

pytestmark = pytest.mark.django_db


class TestUsers:
    ADD = {"username": "ops", "email": "", "password1": "correct horse 9"}

    def test_add(self, admin_client: Client) -> None:
        data = {**self.ADD, "password2": "correct horse 9", "is_staff": "on"}
        response = admin_client.post(reverse("admin:rbac_user_add"), data)
        user = User.objects.get(username="ops")
        assert response["Location"] == reverse("admin:rbac_user_change", args=[user.pk])
        assert user.check_password("correct horse 9")
        assert (user.is_staff, user.is_superuser) == (True, False)
        assert actions() == ["user.created"]

    def test_add_with_two_different_passwords_makes_nobody(self, admin_client: Client) -> None:
        data = {**self.ADD, "password2": "another horse 9"}
        assert admin_client.post(reverse("admin:rbac_user_add"), data).status_code == 200
        assert not User.objects.filter(username="ops").exists()
        assert actions() == []

    def test_who_is_no_superuser_makes_none(self) -> None:
        client = staff("add_user", "change_user", "view_user")
        data = {**self.ADD, "password2": "correct horse 9", "is_superuser": "on", "is_staff": "on"}
        client.post(reverse("admin:rbac_user_add"), data)
        user = User.objects.get(username="ops")
        assert (user.is_staff, user.is_superuser) == (False, False)

    def test_who_is_no_superuser_cannot_take_one_over(self) -> None:
        boss = UserFactory(admin=True, password="correct horse 9")
        client = staff("change_user", "view_user")
        url = reverse("admin:auth_user_password_change", args=[boss.pk])
        new = {"password1": "another horse 9", "password2": "another horse 9"}
        assert client.post(url, new).status_code == 403
        edit = client.post(reverse("admin:rbac_user_change", args=[boss.pk]), {"username": "x"})
        assert edit.status_code == 403
        assert User.objects.get(pk=boss.pk).check_password("correct horse 9")
        assert actions() == []

    @pytest.mark.parametrize("is_active", [True, False])
    @pytest.mark.parametrize("by_group", [True, False])
    def test_who_may_do_less_cannot_take_over_who_may_do_more(
        self, is_active: bool, by_group: bool
    ) -> None:
        operator = UserFactory(is_staff=True, is_active=is_active, password="correct horse 9")
        right = Permission.objects.get(codename="change_deployment")
        if by_group:
            group = Group.objects.create(name="operators")
            group.permissions.add(right)
            operator.groups.add(group)
        else:
            operator.user_permissions.add(right)
        client = staff("change_user", "view_user")
        url = reverse("admin:auth_user_password_change", args=[operator.pk])
        new = {"password1": "another horse 9", "password2": "another horse 9"}
        assert client.post(url, new).status_code == 403
        edit = client.post(reverse("admin:rbac_user_change", args=[operator.pk]), {"username": "x"})
        assert edit.status_code == 403
        assert User.objects.get(pk=operator.pk).check_password("correct horse 9")
        assert actions() == []
        equal = staff("change_user", "view_user", "change_deployment")
        assert equal.post(url, new).status_code == 302
        assert actions() == ["user.password_changed"]

    def test_an_administrator_sets_a_password(self, admin_client: Client) -> None:
        user = UserFactory()
        url = reverse("admin:auth_user_password_change", args=[user.pk])
        new = {"password1": "another horse 9", "password2": "another horse 9"}
        response = admin_client.post(url, new)
        assert response["Location"] == reverse("admin:rbac_user_change", args=[user.pk])
        assert User.objects.get(pk=user.pk).check_password("another horse 9")
        event = all_of(AuditEvent).get()
        assert (event.action, event.actor_label) == ("user.password_changed", "admin")

    def test_somebody_changes_their_own_and_stays_signed_in(self) -> None:
        client = staff()
        url = reverse("admin:password_change")
        assert client.get(url).status_code == 200
        response = client.post(
            url,
            {
                "old_password": "pass-word-1",
                "new_password1": "another horse 9",
                "new_password2": "another horse 9",
            },
        )
        assert response["Location"] == reverse("admin:password_change_done")
        assert User.objects.get().check_password("another horse 9")
        assert client.get(reverse("admin:index")).status_code == 200
        assert actions() == ["user.password_changed"]

    def test_the_last_superuser_stays(self, admin_client: Client, admin_user: User) -> None:
        url = reverse("admin:rbac_user_change", args=[admin_user.pk])
        form = {
            "username": "admin", "email": "", "is_staff": "on", "is_superuser": "on",
            **inline("role_grants"),
        }  # fmt: skip
        response = admin_client.post(url, form)
        assert response["Location"] == url
        assert User.objects.get().is_active
        assert messages(admin_client, url) == [
            "This is the last active superuser; make another one first."
        ]

    def test_permissions_offered_are_those_of_our_rooms(self, admin_client: Client) -> None:
        page = admin_client.get(reverse("admin:rbac_user_change", args=[UserFactory().pk]))
        offered = page.context["adminform"].form.fields["user_permissions"].queryset
        labels = set(offered.values_list("content_type__app_label", flat=True))
        assert {"tenants", "rbac", "deployments"} <= labels
        assert not labels & {"admin", "auth", "sessions", "contenttypes"}

    def test_permissions_are_saved_by_the_service(self, admin_client: Client) -> None:
        user = UserFactory(username="ops", email="")
        permission = Permission.objects.get(codename="view_tenant")
        form = {
            "username": "ops", "is_active": "on", "user_permissions": [permission.pk],
            **inline("role_grants"),
        }  # fmt: skip
        admin_client.post(reverse("admin:rbac_user_change", args=[user.pk]), form)
        assert list(user.user_permissions.all()) == [permission]
        assert actions() == ["user.permissions_changed"]


class TestTenants:
    def _form(self, row: Tenant) -> dict[str, Any]:
        return {"name": row.name, "slug": row.slug, "plan": str(row.plan_id), "is_active": "on"}

    def test_add(self, admin_client: Client) -> None:
        row = Tenant(name="Acme", slug="acme", plan=PlanFactory())
        form = {**self._form(row), "tokens_per_day": "500"}
        admin_client.post(reverse("admin:tenants_tenant_add"), form)
        tenant = Tenant.objects.get()
        assert tenant.tokens_per_day == 500
        assert len(tenant.cache_salt) == 64
        assert actions() == ["tenant.created"]

    def test_a_name_taken_at_the_same_moment_is_a_message_and_changes_nothing(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        TenantFactory(name="Acme")
        tenant = TenantFactory(name="Bolt")
        monkeypatch.setattr(Tenant, "validate_unique", lambda self, exclude=None: None)
        form = {**self._form(tenant), "name": "Acme"}
        url = reverse("admin:tenants_tenant_change", args=[tenant.pk])
        assert admin_client.post(url, form)["Location"] == url
        assert messages(admin_client, url) == [
            "Somebody else changed this at the same time; look again."
        ]
        assert Tenant.objects.get(pk=tenant.pk).name == "Bolt"
        assert actions() == []

    def test_a_taken_name_is_a_form_error_and_changes_nothing(self, admin_client: Client) -> None:
        TenantFactory(name="Acme")
        tenant = TenantFactory(name="Bolt")
        form = {**self._form(tenant), "name": "Acme"}
        url = reverse("admin:tenants_tenant_change", args=[tenant.pk])
        response = admin_client.post(url, form)
        assert response.status_code == 200
        assert list(response.context["adminform"].form.errors) == ["name"]
        assert Tenant.objects.get(pk=tenant.pk).name == "Bolt"
        assert actions() == []


class TestPlans:
    FORM = {
        "name": "Team", "slug": "team", "weight": "2", "requests_per_minute": "30",
        "price_prompt": "0.5", "price_cached": "0", "price_completion": "1.25",
    }  # fmt: skip

    def test_add_change_and_delete(self, admin_client: Client) -> None:
        admin_client.post(reverse("admin:tenants_plan_add"), self.FORM)
        plan = Plan.objects.get(slug="team")
        assert (plan.requests_per_minute, plan.tokens_per_day, plan.weight) == (30, None, 2.0)
        assert (plan.price_prompt, plan.price_completion) == (Decimal("0.5"), Decimal("1.25"))
        form = {**self.FORM, "tokens_per_day": "1000", "requests_per_minute": ""}
        admin_client.post(reverse("admin:tenants_plan_change", args=[plan.pk]), form)
        plan.refresh_from_db()
        assert (plan.requests_per_minute, plan.tokens_per_day) == (None, 1000)
        admin_client.post(reverse("admin:tenants_plan_delete", args=[plan.pk]), {"post": "yes"})
        assert not Plan.objects.filter(slug="team").exists()
        assert actions() == ["plan.created", "plan.updated", "plan.deleted"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [("requests_per_minute", "0"), ("tokens_per_day", "-1"), ("weight", "0")],
    )
    def test_a_limit_that_is_none_is_a_form_error(
        self, field: str, value: str, admin_client: Client
    ) -> None:
        response = admin_client.post(reverse("admin:tenants_plan_add"), {**self.FORM, field: value})
        assert list(response.context["adminform"].form.errors) == [field]
        assert actions() == []

    def test_a_plan_that_tenants_have_stays(self, admin_client: Client) -> None:
        plan = TenantFactory().plan
        url = reverse("admin:tenants_plan_delete", args=[plan.pk])
        admin_client.post(url, {"post": "yes"})
        assert Plan.objects.filter(pk=plan.pk).exists()
        assert actions() == []


def test_end_user_is_added_changed_and_deleted(admin_client: Client) -> None:
    tenant = TenantFactory()
    form = {"tenant": tenant.pk, "identifier": "ada", "tokens_per_day": "100"}
    admin_client.post(reverse("admin:tenants_enduser_add"), form)
    row = all_of(EndUser).get()
    url = reverse("admin:tenants_enduser_change", args=[row.pk])
    admin_client.post(url, {**form, "tokens_per_day": "200"})
    row.refresh_from_db()
    assert row.tokens_per_day == 200
    admin_client.post(reverse("admin:tenants_enduser_delete", args=[row.pk]), {"post": "yes"})
    assert not all_of(EndUser).exists()
    assert actions() == ["end_user.created", "end_user.updated", "end_user.deleted"]


def test_a_token_has_limits_of_its_own(admin_client: Client) -> None:
    tenant = TenantFactory()
    form = {"tenant": tenant.pk, "name": "ci", "scopes": ["inference"], "requests_per_minute": "5"}
    admin_client.post(reverse("admin:rbac_apitoken_add"), form)
    token = all_of(ApiToken).get()
    assert token.requests_per_minute == 5
    edit = {
        "name": "ci",
        "scopes": ["inference"],
        "requests_per_minute": "7",
        "max_context_tokens": "100",
    }
    admin_client.post(reverse("admin:rbac_apitoken_change", args=[token.pk]), edit)
    token.refresh_from_db()
    assert (token.requests_per_minute, token.max_context_tokens) == (7, 100)
    assert actions() == ["api_token.issued", "api_token.updated"]


@pytest.mark.parametrize("name", ["tenants_tenant", "rbac_user", "rbac_apitoken"])
def test_what_the_ledger_speaks_of_is_never_deleted(name: str, admin_client: Client) -> None:
    obj: Any = {"tenants_tenant": TenantFactory, "rbac_user": UserFactory}.get(
        name, ApiTokenFactory
    )()
    url = reverse(f"admin:{name}_delete", args=[obj.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert all_of(type(obj)).filter(pk=obj.pk).exists()


@pytest.mark.parametrize("name", ["audit_auditevent", "metering_usagerecord"])
def test_records_are_read_only_for_superusers_too(name: str, admin_client: Client) -> None:
    factory: Any = AuditEventFactory if name == "audit_auditevent" else UsageRecordFactory
    obj = factory()
    before = all_of(type(obj)).values().get()
    assert admin_client.post(reverse(f"admin:{name}_add"), {}).status_code == 403
    for page in ("change", "delete"):
        url = reverse(f"admin:{name}_{page}", args=[obj.pk])
        assert admin_client.post(url, {"post": "yes", "action": "x"}).status_code == 403
    assert all_of(type(obj)).values().get() == before


def test_route_is_added_changed_and_deleted(admin_client: Client) -> None:
    route = RouteFactory(name="old")
    form = {
        "name": "new", "description": "", "is_active": "on",
        **inline("routeuserobjectpermission_set"),
    }  # fmt: skip
    leads = targets_form(route)
    admin_client.post(reverse("admin:routing_route_change", args=[route.pk]), {**form, **leads})
    leads = targets_form({"deployment": route.deployment.pk, "weight": 1})
    admin_client.post(reverse("admin:routing_route_add"), {**form, **leads, "name": "second"})
    admin_client.post(reverse("admin:routing_route_delete", args=[route.pk]), {"post": "yes"})
    assert list(all_of(type(route)).values_list("name", flat=True)) == ["second"]
    assert actions() == ["route.updated", "route.created", "route.deleted"]


def test_history_is_the_audit_trail_of_the_object(admin_client: Client) -> None:
    tenant, other = TenantFactory(), TenantFactory()
    for name, row in {"a": tenant, "b": other}.items():
        form = {
            "name": name,
            "slug": row.slug,
            "plan": str(row.plan_id),
        }
        admin_client.post(reverse("admin:tenants_tenant_change", args=[row.pk]), form)
    page = admin_client.get(reverse("admin:tenants_tenant_history", args=[tenant.pk]), follow=True)
    assert [event.object_id for event in page.context["cl"].result_list] == [str(tenant.pk)]
