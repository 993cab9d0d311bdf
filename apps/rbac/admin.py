"""Users and API tokens. A token's secret is shown in the answer that makes it, and never again."""

import copy
from functools import partial
from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import LIMIT_ROWS, ServiceModelAdmin, action, dialog_redirect, display
from apps.core.limits import LIMIT_NAMES
from apps.rbac.forms import ServicePasswordForm, UserAddForm, UserEditForm
from apps.rbac.models import ApiToken, User
from apps.rbac.selectors import permission_names
from apps.rbac.services import (
    api_token_issue,
    api_token_revoke,
    api_token_update,
    user_create,
    user_permissions_set,
    user_update,
)

# Roles come with permissions of their own; bare groups would be a second way beside them.
admin.site.unregister(Group)

_OWN_LIMITS = ("Limits of its own (empty: none but the tenant's)", {"fields": LIMIT_ROWS})
_POWERS = ("is_staff", "is_superuser", "user_permissions")


@admin.register(User)
class UserAdmin(ServiceModelAdmin, DjangoUserAdmin):  # type: ignore[misc,type-arg]
    form = UserEditForm
    add_form = UserAddForm
    change_password_form = ServicePasswordForm
    list_display = ("username", "email", "role", "state", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser")
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
            kwargs["queryset"] = Permission.objects.filter(
                content_type__app_label__in=[
                    config.label
                    for config in apps.get_app_configs()
                    if config.name.startswith("apps.")
                ]
            ).select_related("content_type")
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
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
        description="Role",
        label={"Superuser": "primary", "Staff": "info", "No admin access": ""},
    )
    def role(self, user: User) -> str:
        if user.is_superuser:
            return "Superuser"
        return "Staff" if user.is_staff else "No admin access"

    @display(description="State", label={"Active": "success", "Off": "danger"})
    def state(self, user: User) -> str:
        return "Active" if user.is_active else "Off"


class TokenStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "In force"), ("expired", "Expired"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        expired = models.Q(expires_at__lte=timezone.now())
        match self.value():
            case "live":
                return queryset.filter(~expired | models.Q(expires_at=None), revoked_at=None)
            case "expired":
                return queryset.filter(expired, revoked_at=None)
            case "revoked":
                return queryset.filter(revoked_at__isnull=False)
        return queryset


@admin.register(ApiToken)
class ApiTokenAdmin(ServiceModelAdmin):
    list_display = ("name", "shown_prefix", "tenant", "state", "last_used_at", "expires_at")
    list_filter = (TokenStateFilter,)
    list_select_related = ("tenant",)
    search_fields = ("name", "prefix", "tenant__name")
    ordering = ("-id",)
    autocomplete_fields = ("tenant",)
    actions_detail = ("revoke",)
    actions_row = ("revoke",)
    add_fieldsets = ((None, {"fields": ("tenant", "name", "expires_at")}), _OWN_LIMITS)
    fieldsets = (
        (None, {"fields": (("name", "tenant"), "shown_prefix", "expires_at")}),
        _OWN_LIMITS,
        ("Life", {"fields": (("created_by", "created_at"), ("last_used_at", "revoked_at"))}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ()
        fixed = (
            "tenant", "shown_prefix", "created_by", "created_at", "last_used_at", "revoked_at"
        )  # fmt: skip
        return fixed if obj.revoked_at is None else (*fixed, "name", "expires_at", *LIMIT_NAMES)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        actor = actor_of(request)
        if change:
            return api_token_update(token=obj, actor=actor)
        issued = api_token_issue(
            tenant=obj.tenant,
            name=obj.name,
            expires_at=obj.expires_at,
            created_by=request.user if isinstance(request.user, User) else None,
            actor=actor,
            **{name: getattr(obj, name) for name in LIMIT_NAMES},
        )
        obj.issued_secret = issued.secret
        return issued.token

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the secret in this very answer: a redirect would have to keep it somewhere."""
        context = {
            **self.admin_site.each_context(request),
            "title": "Token issued",
            "opts": self.opts,
            "token": obj,
            "secret": obj.issued_secret,
            "list_url": reverse("admin:rbac_apitoken_changelist"),
        }
        response = TemplateResponse(request, "admin/rbac/apitoken/issued.html", context)
        response["Cache-Control"] = "no-store"
        return response

    @action(
        description="Revoke",
        permissions=["change"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Revoke this token?",
            "description": "Programs that use it are refused from now on. "
            "This cannot be undone; a new token would have to be issued.",
            "form_class": None,
            "form_submit_text": "Revoke",
        },
    )
    def revoke(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        token = get_object_or_404(ApiToken, pk=object_id)
        api_token_revoke(token=token, actor=actor_of(request))
        messages.success(request, f"Token {token} is revoked.")
        return dialog_redirect(request, reverse("admin:rbac_apitoken_changelist"))

    @display(description="Token")
    def shown_prefix(self, token: ApiToken) -> str:
        return f"{token.prefix}…"

    @display(
        description="State",
        label={"In force": "success", "Expired": "warning", "Revoked": "danger"},
    )
    def state(self, token: ApiToken) -> str:
        if token.revoked_at is not None:
            return "Revoked"
        return "In force" if token.is_live else "Expired"
