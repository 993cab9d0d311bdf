"""Roles: the sets of permissions that people are given."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, display
from apps.rbac.models import Role
from apps.rbac.permissions import grantable_permissions
from apps.rbac.selectors import person_of
from apps.rbac.services import role_delete, role_save


@admin.register(Role)
class RoleAdmin(ServiceModelAdmin):
    list_display = ("name", "description", "origin", "n_permissions", "n_holders")
    list_filter = ("is_builtin",)
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    filter_horizontal = ("permissions",)
    fields = (("name", "slug"), "description", "permissions")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Role]:
        rows: models.QuerySet[Role] = super().get_queryset(request)
        return rows.annotate(
            n_permissions=Count("permissions", distinct=True),
            n_holders=Count("grants", distinct=True),
        )

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_prepopulated_fields(request, obj) if obj is None else {}

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        is_ours = not (isinstance(obj, Role) and obj.is_builtin)
        return is_ours and bool(super().has_change_permission(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        is_ours = not (isinstance(obj, Role) and obj.is_builtin)
        return is_ours and bool(super().has_delete_permission(request, obj))

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs["queryset"] = grantable_permissions()
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return role_save(
            role=obj,
            permissions=form.cleaned_data["permissions"],
            by=person_of(request),
            actor=actor_of(request),
        )

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The service has saved the permissions."""

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        role_delete(role=obj, by=person_of(request), actor=actor_of(request))

    @display(description="Origin", label={"Comes with the platform": "", "Own": "info"})
    def origin(self, role: Role) -> str:
        return "Comes with the platform" if role.is_builtin else "Own"

    @display(description="Permissions")
    def n_permissions(self, role: Any) -> int:
        return int(role.n_permissions)

    @display(description="Given to")
    def n_holders(self, role: Any) -> int:
        return int(role.n_holders)
