"""Tenants and their members."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest
from unfold.admin import TabularInline

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, display
from apps.tenants.models import Membership, Tenant
from apps.tenants.services import (
    membership_add,
    membership_remove,
    tenant_create,
    tenant_update,
)


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
    list_display = ("name", "slug", "state", "n_members", "created_at")
    list_filter = ("is_active",)
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    fields = (("name", "slug"), "is_active")
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
            name=obj.name, slug=obj.slug, is_active=obj.is_active, actor=actor_of(request)
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
