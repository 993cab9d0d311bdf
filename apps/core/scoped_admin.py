"""Admin pages of which somebody may see and change a part: what belongs to their tenants, or single
objects that they were given. What they may is ``User.access`` and guardian's to say."""

from collections.abc import Iterable
from typing import Any, TypeVar

from django.contrib.auth.models import Permission
from django.db import models
from django.http import HttpRequest
from guardian.shortcuts import get_objects_for_user
from unfold.admin import TabularInline

from apps.core.access import access_in
from apps.core.admin import BaseAdmin
from apps.core.exceptions import PermissionDenied
from apps.core.tenant_rows import TenantQuerySet

M = TypeVar("M", bound=models.Model)


class TenantScoped(BaseAdmin):
    """Rows of tenants. Whoever holds a permission in some tenants only has it for their rows; for
    them rows of others are not there.

    tenant_lookup: leads from a row to its tenant's id.
    """

    tenant_lookup = "tenant_id"

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request)
        tenant_ids = access_in(request).tenants_where(self._permission("view"))
        if tenant_ids is not None:
            return rows.filter(**self._within(tenant_ids))
        return rows.of_tenants(None) if isinstance(rows, TenantQuerySet) else rows

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "view", obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "add", None)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "change", obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete", obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offer, and take, only tenants in which somebody may make such a row."""
        if db_field.remote_field.model._meta.label == "tenants.Tenant":
            tenant_ids = access_in(request).tenants_where(self._permission("add"))
            if tenant_ids is not None:
                tenants = db_field.remote_field.model._default_manager
                kwargs["queryset"] = tenants.filter(pk__in=tenant_ids)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def _may(self, request: HttpRequest, verb: str, obj: Any) -> bool:
        permission = self._permission(verb)
        if obj is None:
            return access_in(request).may_somewhere(permission)
        if not isinstance(obj, models.Model):  # the theme's actions know the key only
            obj = self.get_object(request, str(obj))  # None of what is no key
        return obj is not None and request.user.has_perm(permission, obj)

    def _permission(self, verb: str) -> str:
        opts = self.model._meta
        return f"{opts.app_label}.{verb}_{opts.model_name}"

    def _within(self, tenant_ids: Iterable[int]) -> dict[str, Any]:
        return {f"{self.tenant_lookup}__in": tenant_ids}


class GivenInline(TabularInline):  # type: ignore[misc]
    """Who was given this one object, and what they may do with it. The page's ``save_formset``
    calls the service."""

    fields = ("user", "permission")
    ordering = ("id",)
    autocomplete_fields = ("user",)
    extra = 0
    hide_title = True
    per_page = 20
    verbose_name = "person"
    verbose_name_plural = "people with a permission on this one"

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request)
        return rows.select_related("user", "permission__content_type", "content_object")

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "permission":
            opts = self.parent_model._meta
            permissions = Permission.objects.filter(
                content_type__app_label=opts.app_label, content_type__model=opts.model_name
            ).exclude(codename=f"add_{opts.model_name}")
            kwargs["queryset"] = permissions.select_related("content_type")  # each says its own
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access_in(request).may("rbac.view_rolegrant")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access_in(request).may("rbac.add_rolegrant")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ScopedInline(TabularInline):  # type: ignore[misc]
    """Rows that are a part of an object, and no more: whoever may see or change it sees or changes
    them, and they lead to what somebody sees and to what is chosen now."""

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        whole = next(
            each.name for each in self.model._meta.fields if each.related_model is self.parent_model
        )
        chosen = self.model._default_manager.filter(**{f"{whole}_id": _object_id(request)})
        kwargs.setdefault("queryset", _seen_or_chosen(self, db_field, request, chosen=chosen))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(self._whole.has_view_permission(request, obj))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if obj is None:
            return bool(self._whole.has_add_permission(request))
        return bool(self._whole.has_change_permission(request, obj))

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    @property
    def _whole(self) -> Any:
        return self.admin_site.get_model_admin(self.parent_model)


class ObjectScoped(BaseAdmin):
    """Objects that can be given to somebody one by one, beside a permission for all of them."""

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request)
        if super().has_view_permission(request):
            return rows
        return rows.filter(pk__in=self._given(request, "view", "change").values("pk"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if super().has_view_permission(request, obj):
            return True
        return self._is_given(request, obj, "view", "change")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if super().has_change_permission(request, obj):
            return True
        return self._is_given(request, obj, "change")

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", self._choices(db_field, request))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", self._choices(db_field, request))
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def _choices(self, db_field: Any, request: HttpRequest) -> models.QuerySet[Any]:
        """Offer, and take, what somebody sees on the pages of that kind, and what is chosen now:
        else one object that they were given would lead them to any other."""
        changed = self.model._default_manager.filter(pk=_object_id(request))
        return _seen_or_chosen(self, db_field, request, chosen=changed)

    def changeable(self, request: HttpRequest, rows: Iterable[M]) -> list[M]:
        """Return the rows; raises PermissionDenied where this person may not change all of them."""
        found = list(rows)
        for row in found:
            if not self.has_change_permission(request, row):
                raise PermissionDenied(f"You may not change {row}.")
        return found

    def _is_given(self, request: HttpRequest, obj: Any, *verbs: str) -> bool:
        if not request.user.is_authenticated:
            return False
        if obj is None:
            return self._given(request, *verbs).exists()
        return any(request.user.has_perm(name, obj) for name in self._names(verbs))

    def _given(self, request: HttpRequest, *verbs: str) -> models.QuerySet[Any]:
        found: models.QuerySet[Any] = get_objects_for_user(
            request.user,
            self._names(verbs),
            klass=self.model,
            any_perm=True,
            accept_global_perms=False,
            with_superuser=False,
        )
        return found

    def _names(self, verbs: Iterable[str]) -> list[str]:
        opts = self.model._meta
        return [f"{opts.app_label}.{verb}_{opts.model_name}" for verb in verbs]


def _object_id(request: HttpRequest) -> str | None:
    match = request.resolver_match
    return match.kwargs.get("object_id") if match is not None else None


def _seen_or_chosen(
    page: Any, db_field: Any, request: HttpRequest, *, chosen: models.QuerySet[Any]
) -> models.QuerySet[Any]:
    """Return what somebody sees on the pages of the kind that a field leads to, and what it leads
    to in the rows that are ``chosen``."""
    kind = db_field.remote_field.model
    rows: models.QuerySet[Any] = kind._default_manager.all()
    pages = page.admin_site.get_model_admin(kind)
    seen = pages.get_queryset(request) if pages.has_view_permission(request) else rows.none()
    return rows.filter(
        models.Q(pk__in=seen.values("pk")) | models.Q(pk__in=chosen.values(db_field.name))
    )
