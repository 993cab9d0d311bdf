"""What groups of the single sign-on provider give."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, display
from apps.core.tenant_rows import TenantQuerySet
from apps.rbac.models import GroupMapping, RoleGrant
from apps.rbac.selectors import person_of
from apps.rbac.services import group_mapping_add, group_mapping_delete


@admin.register(GroupMapping)
class GroupMappingAdmin(ServiceModelAdmin):
    """Mappings come and go; one is never edited."""

    list_display = ("group", "role", "where", "n_people", "made_by", "created_at")
    list_filter = ("role",)
    list_select_related = ("role", "tenant", "made_by")
    search_fields = ("group", "tenant__name")
    ordering = ("group", "id")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[GroupMapping]:
        rows: TenantQuerySet[GroupMapping] = super().get_queryset(request)
        return rows.of_tenants(None).annotate(n_people=Count("grants"))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = ("group", "role", "tenant")
        return fields if obj is None else (*fields, "made_by", "created_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.get_fields(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return group_mapping_add(mapping=obj, by=person_of(request), actor=actor_of(request))

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        group_mapping_delete(mapping=obj, by=person_of(request), actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What people have by it goes with it."""
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return deleted, counts, lacking - {RoleGrant._meta.verbose_name}, protected

    @display(description="Where")
    def where(self, mapping: GroupMapping) -> str:
        return "Everywhere" if mapping.tenant is None else str(mapping.tenant)

    @display(description="People")
    def n_people(self, mapping: Any) -> int:
        return int(mapping.n_people)
