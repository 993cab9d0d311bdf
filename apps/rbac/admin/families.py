"""Access tokens in force and gone: which API tokens were exchanged, when, and until when. The
tokens themselves are kept nowhere."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyAdmin, action, dialog_redirect, display
from apps.core.scoped_admin import TenantScoped
from apps.rbac.models import TokenFamily
from apps.rbac.services import token_family_end


@admin.register(TokenFamily)
class TokenFamilyAdmin(ReadOnlyAdmin, TenantScoped):
    """Who may see an API token sees what it was exchanged for, and who may change it ends that."""

    tenant_lookup = "api_token__tenant_id"
    list_display = ("public_id", "api_token", "tenant", "shown_scopes", "state", "created_at")
    list_select_related = ("api_token__tenant",)
    search_fields = ("public_id", "api_token__name", "api_token__prefix")
    search_help_text = "The family that a token says, or the API token"
    ordering = ("-id",)
    sortable_by = ()
    actions_detail = ("revoke",)
    actions_row = ("revoke",)
    fields = (
        ("public_id", "api_token"),
        ("tenant", "shown_scopes"),
        ("state", "created_at"),
        ("expires_at", "revoked_at"),
    )

    @action(
        description="Revoke",
        permissions=["revoke"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Revoke these access tokens?",
            "description": "What runs for them ends within a second. The API token stays as it is.",
            "form_class": None,
            "form_submit_text": "Revoke",
        },
    )
    def revoke(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        family = get_object_or_404(self.get_queryset(request), pk=object_id)
        token_family_end(family=family, actor=actor_of(request))
        messages.success(request, f"The access tokens of {family} are revoked.")
        return dialog_redirect(request, reverse("admin:rbac_tokenfamily_changelist"))

    def has_revoke_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may(request, "change", object_id)

    @display(description="Tenant")
    def tenant(self, family: TokenFamily) -> str:
        return str(family.api_token.tenant)

    @display(description="Scopes")
    def shown_scopes(self, family: TokenFamily) -> str:
        return ", ".join(family.scopes)

    @display(description="State", label={"In force": "success", "Over": "", "Revoked": "danger"})
    def state(self, family: TokenFamily) -> str:
        if family.revoked_at is not None:
            return "Revoked"
        return "In force" if family.is_live else "Over"

    def _permission(self, verb: str) -> str:
        return f"rbac.{verb}_apitoken"
