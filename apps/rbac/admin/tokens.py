"""API tokens. A token's secret is shown in the answer that makes it, and never again."""

from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import (
    LIMIT_ROWS,
    ServiceModelAdmin,
    action,
    dialog_redirect,
    display,
    refused,
)
from apps.core.exceptions import AppError
from apps.core.limits import LIMIT_NAMES
from apps.core.scoped_admin import TenantScoped
from apps.rbac.forms import RotateForm, TokenForm
from apps.rbac.models import ApiToken, User
from apps.rbac.selectors import person_of
from apps.rbac.services import (
    api_token_issue,
    api_token_revoke,
    api_token_rotate,
    api_token_update,
)
from apps.rbac.types import ADD_TOKEN, IssuedToken

_OWN_LIMITS = ("Limits of its own (empty: none but the tenant's)", {"fields": LIMIT_ROWS})


_CHANGEABLE = ("name", "scopes", "allowed_networks", "expires_at")


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
class ApiTokenAdmin(TenantScoped, ServiceModelAdmin):
    form = TokenForm
    list_display = (
        "name", "shown_prefix", "tenant", "belongs_to", "state", "last_used_at", "expires_at"
    )  # fmt: skip
    list_filter = (TokenStateFilter,)
    list_select_related = ("tenant", "owner")
    search_fields = ("name", "prefix", "tenant__name")
    ordering = ("-id",)
    actions_detail = ("rotate", "revoke")
    actions_row = ("revoke",)
    add_fieldsets = (
        (None, {"fields": (("tenant", "owner"), "name", "scopes")}),
        ("Bounds", {"fields": ("allowed_networks", "expires_at")}),
        _OWN_LIMITS,
    )
    fieldsets = (
        (None, {"fields": (("name", "tenant"), ("shown_prefix", "owner"), "scopes")}),
        ("Bounds", {"fields": ("allowed_networks", "expires_at")}),
        _OWN_LIMITS,
        ("Life", {"fields": (("created_by", "created_at"), ("last_used_at", "revoked_at"))}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ()
        fixed = (
            "tenant", "owner", "shown_prefix", "created_by", "created_at", "last_used_at",
            "revoked_at",
        )  # fmt: skip
        return fixed if obj.revoked_at is None else (*fixed, *_CHANGEABLE, *LIMIT_NAMES)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        actor = actor_of(request)
        if change:
            return api_token_update(token=obj, actor=actor, by=person_of(request))
        issued = api_token_issue(
            tenant=obj.tenant,
            name=obj.name,
            owner=obj.owner,
            scopes=obj.scopes,
            allowed_networks=obj.allowed_networks,
            expires_at=obj.expires_at,
            created_by=person_of(request),
            actor=actor,
            **{name: getattr(obj, name) for name in LIMIT_NAMES},
        )
        obj.issued_secret = issued.secret
        return issued.token

    def get_autocomplete_fields(self, request: HttpRequest) -> Any:
        """Choosing from everyone is for those who may see everyone."""
        return ("tenant", "owner") if self._sees_people(request) else ()

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        initial = super().get_changeform_initial_data(request)
        person = person_of(request)
        return initial if person.access.may(ADD_TOKEN) else {"owner": person, **initial}

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "owner" and not self._sees_people(request):
            tenant_ids = person_of(request).access.tenants_where(ADD_TOKEN) or ()
            own = models.Q(pk=request.user.pk)
            accounts = models.Q(is_service=True, memberships__tenant__in=tenant_ids)
            kwargs["queryset"] = User.objects.filter(own | accounts).distinct()
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the secret in this very answer: a redirect would have to keep it somewhere."""
        return self._shown_once(request, IssuedToken(token=obj, secret=obj.issued_secret))

    @action(description="Rotate", permissions=["change"], icon="sync")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        token = get_object_or_404(self.get_queryset(request), pk=object_id)
        form = RotateForm(request.POST or None)
        if form.is_valid():
            try:
                issued = api_token_rotate(
                    token=token,
                    overlap=timedelta(hours=form.cleaned_data["overlap_hours"]),
                    rotated_by=person_of(request),
                    actor=actor_of(request),
                )
            except AppError as error:
                location = reverse("admin:rbac_apitoken_change", args=[token.pk])
                return refused(request, error, location=location)
            return self._shown_once(request, issued)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Rotate {token}",
            "opts": self.opts,
            "form": form,
            "submit": "Issue the new token",
        }
        return TemplateResponse(request, "admin/rbac/form.html", context)

    def _shown_once(self, request: HttpRequest, issued: IssuedToken) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Token issued",
            "opts": self.opts,
            "token": issued.token,
            "secret": issued.secret,
            "list_url": reverse("admin:rbac_apitoken_changelist"),
        }
        response = TemplateResponse(request, "admin/rbac/apitoken/issued.html", context)
        response["Cache-Control"] = "no-store"
        return response

    def _sees_people(self, request: HttpRequest) -> bool:
        return bool(person_of(request).access.may("rbac.view_user"))

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
        token = get_object_or_404(self.get_queryset(request), pk=object_id)
        api_token_revoke(token=token, actor=actor_of(request))
        messages.success(request, f"Token {token} is revoked.")
        return dialog_redirect(request, reverse("admin:rbac_apitoken_changelist"))

    @display(description="Belongs to")
    def belongs_to(self, token: ApiToken) -> str:
        return str(token.owner) if token.owner is not None else "The tenant"

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
