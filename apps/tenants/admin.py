"""Plans, tenants and their members, and whom those serve."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest
from unfold.admin import TabularInline

from apps.audit.selectors import actor_of
from apps.core.admin import LIMIT_ROWS, ServiceModelAdmin, display
from apps.core.limits import LIMIT_NAMES
from apps.tenants.models import EndUser, Membership, Plan, Tenant
from apps.tenants.services import (
    end_user_delete,
    end_user_save,
    membership_add,
    membership_remove,
    plan_delete,
    plan_save,
    tenant_create,
    tenant_update,
)


@admin.register(Plan)
class PlanAdmin(ServiceModelAdmin):
    list_display = (
        "name", "requests_per_minute", "tokens_per_day", "tokens_per_month",
        "max_concurrent_requests", "weight", "n_tenants",
    )  # fmt: skip
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    fieldsets = (
        (None, {"fields": (("name", "slug"), "weight")}),
        ("Limits (empty: none)", {"fields": LIMIT_ROWS}),
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
class EndUserAdmin(ServiceModelAdmin):
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


class MembershipInline(TabularInline):
    """Members come and go; a membership itself is never edited."""

    model = Membership
    fields = ("user", "created_at")
    readonly_fields = ("created_at",)
    autocomplete_fields = ("user",)
    extra = 0
    hide_title = True
    per_page = 20
    verbose_name_plural = "members"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Membership]:
        return super().get_queryset(request).select_related("user", "tenant")  # type: ignore[no-any-return]


@admin.register(Tenant)
class TenantAdmin(ServiceModelAdmin):
    list_display = ("name", "slug", "plan", "state", "n_members", "created_at")
    list_filter = ("plan", "is_active")
    list_select_related = ("plan",)
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    fieldsets = (
        (None, {"fields": (("name", "slug"), "plan", "is_active")}),
        ("Limits of its own (empty: as in the plan)", {"fields": LIMIT_ROWS}),
    )
    inlines = (MembershipInline,)

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
            actor=actor_of(request),
            **{name: getattr(obj, name) for name in LIMIT_NAMES},
        )

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        added = formset.save(commit=False)
        for membership in formset.deleted_objects:
            membership_remove(membership=membership, actor=actor_of(request))
        for membership in added:
            membership_add(tenant=form.instance, user=membership.user, actor=actor_of(request))

    @display(
        description="State", label={"Active": "success", "Off": "danger"}, ordering="is_active"
    )
    def state(self, tenant: Tenant) -> str:
        return "Active" if tenant.is_active else "Off"

    @display(description="Members")
    def n_members(self, tenant: Any) -> int:
        return int(tenant.n_members)
