"""Members of tenants and the roles that they have there; service accounts among them."""

from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, action, display, refused
from apps.core.exceptions import AppError
from apps.core.scoped_admin import TenantScoped
from apps.rbac.admin.grants import GrantingAdmin, TenantGrantInline
from apps.rbac.forms import MemberAddForm, ServiceAccountForm
from apps.rbac.models import RoleGrant
from apps.rbac.selectors import person_of
from apps.rbac.services import member_add, member_remove, service_account_create

_Membership: Any = RoleGrant._meta.get_field("membership").related_model


@admin.register(_Membership)
class MembershipAdmin(TenantScoped, GrantingAdmin, ServiceModelAdmin):
    list_display = ("member", "kind", "tenant", "roles", "created_at")
    list_filter = ("role_grants__role", "user__is_service")
    list_select_related = ("user", "tenant")
    search_fields = ("user__username", "user__email", "tenant__name")
    ordering = ("tenant", "user")
    add_form = MemberAddForm
    inlines = (TenantGrantInline,)
    actions_list = ("new_service_account",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        return super().get_queryset(request).prefetch_related("role_grants__role")

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        if obj is None:
            kwargs["form"] = self.add_form
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("tenant", "person", "role") if obj is None else (("user", "tenant"), "created_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("user", "tenant", "created_at")

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj is not None else ()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What changes about a member is their roles."""
        access, tenant_id = person_of(request).access, getattr(obj, "tenant_id", None)
        names = ("rbac.add_rolegrant", "rbac.delete_rolegrant")
        if obj is None:
            return any(access.may_somewhere(name) for name in names)
        return any(access.may(name, tenant_id=tenant_id) for name in names)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        if change:
            return obj  # type: ignore[no-any-return]
        return member_add(
            tenant=obj.tenant,
            user=form.cleaned_data["person"],
            role=form.cleaned_data["role"],
            by=person_of(request),
            actor=actor_of(request),
        )

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        member_remove(membership=obj, by=person_of(request), actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Roles go with the membership."""
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return deleted, counts, lacking - {RoleGrant._meta.verbose_name}, protected

    @action(description="New service account", permissions=["add"], icon="smart_toy")
    def new_service_account(self, request: HttpRequest) -> HttpResponse:
        tenant_ids = person_of(request).access.tenants_where("tenants.add_membership")
        form = ServiceAccountForm(request.POST or None, tenant_ids=tenant_ids)
        if form.is_valid():
            try:
                account = service_account_create(
                    **form.cleaned_data, by=person_of(request), actor=actor_of(request)
                )
            except AppError as error:
                return refused(request, error, location=request.get_full_path())
            messages.success(request, f"Service account {account} can own tokens now.")
            return HttpResponseRedirect(reverse("admin:tenants_membership_changelist"))
        context = {
            **self.admin_site.each_context(request),
            "title": "New service account",
            "opts": self.opts,
            "form": form,
            "submit": "Make the account",
        }
        return TemplateResponse(request, "admin/rbac/form.html", context)

    @display(description="Member")
    def member(self, membership: Any) -> str:
        return str(membership.user)

    @display(description="Kind", label={"Person": "info", "Service account": ""})
    def kind(self, membership: Any) -> str:
        return "Service account" if membership.user.is_service else "Person"

    @display(description="Roles")
    def roles(self, membership: Any) -> str:
        names = dict.fromkeys(grant.role.name for grant in membership.role_grants.all())
        return ", ".join(names) or "None"
