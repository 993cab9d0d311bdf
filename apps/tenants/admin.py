"""Plans, tenants, and whom those serve."""

from typing import Any, Final

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.audit.selectors import actor_of
from apps.core.admin import LIMIT_ROWS, ServiceModelAdmin, display
from apps.core.limits import LIMIT_NAMES
from apps.core.scoped_admin import TenantScoped
from apps.tenants.models import EndUser, Plan, Tenant
from apps.tenants.services import (
    end_user_delete,
    end_user_save,
    plan_delete,
    plan_save,
    tenant_create,
    tenant_update,
)

# By its name only: what it leads to is a page of the ledger's, which stands above this room.
TRY_BUTTON: Final = "admin/metering/try_button.html"


@admin.register(Plan)
class PlanAdmin(ServiceModelAdmin):
    list_display = (
        "name", "requests_per_minute", "tokens_per_day", "tokens_per_month",
        "max_concurrent_requests", "weight", "n_tenants",
    )  # fmt: skip
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    change_form_after_template = TRY_BUTTON
    fieldsets = (
        (None, {"fields": (("name", "slug"), "weight")}),
        ("Limits (empty: none)", {"fields": LIMIT_ROWS}),
        (
            "Prices for a million tokens",
            {"fields": (("price_prompt", "price_cached", "price_completion"),)},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Plan]:
        return super().get_queryset(request).annotate(n_tenants=Count("tenants"))  # type: ignore[no-any-return]

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return plan_save(plan=obj, actor=actor_of(request))

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        plan_delete(plan=obj, actor=actor_of(request))

    @display(description="Tenants")
    def n_tenants(self, plan: Any) -> int:
        return int(plan.n_tenants)


@admin.register(EndUser)
class EndUserAdmin(TenantScoped, ServiceModelAdmin):
    list_display = ("identifier", "tenant", "requests_per_minute", "tokens_per_day")
    list_select_related = ("tenant",)
    search_fields = ("identifier", "tenant__name")
    ordering = ("tenant", "identifier")
    autocomplete_fields = ("tenant",)
    fieldsets = (
        (None, {"fields": (("tenant", "identifier"),)}),
        ("Limits (empty: none but the tenant's)", {"fields": LIMIT_ROWS}),
    )

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return end_user_save(end_user=obj, actor=actor_of(request))

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        end_user_delete(end_user=obj, actor=actor_of(request))


@admin.register(Tenant)
class TenantAdmin(TenantScoped, ServiceModelAdmin):
    tenant_lookup = "pk"
    list_display = ("name", "slug", "plan", "state", "n_members", "created_at")
    list_filter = ("plan", "is_active")
    list_select_related = ("plan",)
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    change_form_after_template = TRY_BUTTON
    fieldsets = (
        (None, {"fields": (("name", "slug"), "plan", "is_active", "needs_second_person")}),
        ("Experiments", {"fields": ("allows_judging",)}),
        ("Limits of its own (empty: as in the plan)", {"fields": LIMIT_ROWS}),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Tenant]:
        return super().get_queryset(request).annotate(n_members=Count("memberships"))  # type: ignore[no-any-return]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        if change:
            return tenant_update(tenant=obj, actor=actor_of(request))
        return tenant_create(
            name=obj.name,
            slug=obj.slug,
            plan=obj.plan,
            is_active=obj.is_active,
            needs_second_person=obj.needs_second_person,
            allows_judging=obj.allows_judging,
            actor=actor_of(request),
            **{name: getattr(obj, name) for name in LIMIT_NAMES},
        )

    @display(
        description="State", label={"Active": "success", "Off": "danger"}, ordering="is_active"
    )
    def state(self, tenant: Tenant) -> str:
        return "Active" if tenant.is_active else "Off"

    @display(description="Members")
    def n_members(self, tenant: Any) -> SafeString:
        return format_html(
            '<a href="{}?tenant__id__exact={}">{}</a>',
            reverse("admin:tenants_membership_changelist"),
            tenant.pk,
            tenant.n_members,
        )
