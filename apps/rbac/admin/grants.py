"""Who has which role, as a part of the pages of people and members."""

from typing import Any

from django.http import HttpRequest
from unfold.admin import TabularInline

from apps.audit.selectors import actor_of
from apps.core.admin import BaseAdmin
from apps.rbac.models import RoleGrant
from apps.rbac.selectors import person_of
from apps.rbac.services import role_grant, role_grant_remove


class RoleGrantInline(TabularInline):  # type: ignore[misc]
    """Roles come and go; a grant itself is never edited. Whoever may give roles may in their own
    tenants; the service refuses what they do not have themselves."""

    model = RoleGrant
    fields = ("role", "granted_by", "mapping", "created_at")
    readonly_fields = ("granted_by", "mapping", "created_at")
    extra = 0
    hide_title = True
    per_page = 20
    verbose_name = "role"
    verbose_name_plural = "roles"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "view", obj)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "add", obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete", obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request)
        return rows.select_related(
            "role", "granted_by", "user", "membership__tenant", "mapping__role", "mapping__tenant"
        )

    def _may(self, request: HttpRequest, verb: str, obj: Any) -> bool:
        """obj: the member or the person whose page it is."""
        tenant_id = getattr(obj, "tenant_id", None)
        return bool(person_of(request).access.may(f"rbac.{verb}_rolegrant", tenant_id=tenant_id))


class EverywhereGrantInline(RoleGrantInline):
    """On a person's page."""

    fk_name = "user"


class TenantGrantInline(RoleGrantInline):
    """On a member's page."""

    fk_name = "membership"


class GrantingAdmin(BaseAdmin):
    """A page with one of these."""

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        added = formset.save(commit=False)
        for grant in formset.deleted_objects:
            role_grant_remove(grant=grant, by=person_of(request), actor=actor_of(request))
        for grant in added:
            role_grant(
                role=grant.role,
                user=grant.user,
                membership=grant.membership,
                by=person_of(request),
                actor=actor_of(request),
            )
