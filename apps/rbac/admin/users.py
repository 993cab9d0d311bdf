"""People: who they are, and what they may do everywhere."""

import copy
from functools import partial
from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import models
from django.http import HttpRequest, HttpResponse

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, display
from apps.rbac.admin.grants import EverywhereGrantInline, GrantingAdmin
from apps.rbac.forms import ServicePasswordForm, UserAddForm, UserEditForm
from apps.rbac.models import User
from apps.rbac.permissions import grantable_permissions
from apps.rbac.selectors import permission_names
from apps.rbac.services import user_create, user_permissions_set, user_update

# Roles come with permissions of their own; bare groups would be a second way beside them.
admin.site.unregister(Group)

_POWERS = ("is_staff", "is_superuser", "user_permissions")


@admin.register(User)
class UserAdmin(GrantingAdmin, ServiceModelAdmin, DjangoUserAdmin):  # type: ignore[misc,type-arg]
    form = UserEditForm
    add_form = UserAddForm
    change_password_form = ServicePasswordForm
    list_display = ("username", "email", "kind", "state", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser", "is_service")
    search_fields = ("username", "email", "first_name", "last_name")
    ordering = ("username",)
    filter_horizontal = ("user_permissions",)
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": (("username", "email"), ("first_name", "last_name"), "password")}),
        (
            "Permissions",
            {"fields": ("is_active", "is_staff", "is_superuser", "user_permissions")},
        ),
        ("Dates", {"fields": (("last_login", "date_joined"),)}),
    )
    inlines = (EverywhereGrantInline,)
    add_fieldsets = (
        (None, {"fields": (("username", "email"), ("password1", "password2"))}),
        ("Permissions", {"fields": ("is_staff", "is_superuser")}),
    )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody takes over someone who may do more than they."""
        me = request.user
        above = isinstance(obj, User) and (
            obj.is_superuser or bool(permission_names(obj) - me.get_all_permissions())
        )
        return (me.is_superuser or not above) and bool(super().has_change_permission(request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = super().get_readonly_fields(request, obj)
        return fields if request.user.is_superuser else (*fields, *_POWERS)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        if change:
            return user_update(user=obj, actor=actor_of(request))
        return user_create(
            username=obj.username,
            email=obj.email,
            password=form.cleaned_data["password1"],
            is_staff=obj.is_staff,
            is_superuser=obj.is_superuser,
            actor=actor_of(request),
        )

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offer the permissions of our own rooms; the framework's tables have no pages here."""
        if db_field.name == "user_permissions":
            kwargs["queryset"] = grantable_permissions()
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return super().get_inlines(request, obj) if obj is not None else ()

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        for formset in formsets:
            self.save_formset(request, form, formset, change=change)
        if "user_permissions" in form.cleaned_data:
            user_permissions_set(
                user=form.instance,
                permissions=form.cleaned_data["user_permissions"],
                actor=actor_of(request),
            )

    def user_change_password(
        self, request: HttpRequest, id: str, form_url: str = ""
    ) -> HttpResponse:
        page: Any = copy.copy(self)
        page.change_password_form = partial(ServicePasswordForm, actor=actor_of(request))
        return DjangoUserAdmin.user_change_password(page, request, id, form_url)

    @display(
        description="Kind",
        label={
            "Superuser": "primary",
            "Staff": "info",
            "Service account": "",
            "No admin access": "",
        },
    )
    def kind(self, user: User) -> str:
        if user.is_service:
            return "Service account"
        if user.is_superuser:
            return "Superuser"
        return "Staff" if user.is_staff else "No admin access"

    @display(description="State", label={"Active": "success", "Off": "danger"})
    def state(self, user: User) -> str:
        return "Active" if user.is_active else "Off"
