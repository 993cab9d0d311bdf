"""Routes: public model names and where they lead."""

from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, action, display
from apps.core.scoped_admin import GivenInline, ObjectScoped
from apps.rbac.selectors import person_of
from apps.rbac.services import object_permissions_change
from apps.routing.models import Route, RouteUserObjectPermission
from apps.routing.services import (
    remote_responses_purge,
    route_create,
    route_delete,
    route_update,
    version_responses_purge,
)
from apps.routing.types import RouteFields


class RouteGivenInline(GivenInline):
    model = RouteUserObjectPermission


@admin.register(Route)
class RouteAdmin(ObjectScoped, ServiceModelAdmin):
    list_display = ("name", "deployment", "state", "description", "updated_at")
    list_filter = ("is_active",)
    list_select_related = ("deployment",)
    search_fields = ("name", "description", "deployment__name")
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": (("name", "deployment"), "description", "is_active")}),
        ("Kept answers", {"fields": ("caches_responses",)}),
        ("For whom", {"fields": ("is_restricted", "tenants")}),
    )
    actions = ("purge_selected",)
    autocomplete_fields = ("deployment", "tenants")
    inlines = (RouteGivenInline,)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = RouteFields(
            name=obj.name,
            deployment=obj.deployment,
            is_active=obj.is_active,
            description=obj.description,
            is_restricted=obj.is_restricted,
            caches_responses=obj.caches_responses,
        )
        tenants = form.cleaned_data["tenants"]
        if change:
            return route_update(route=obj, actor=actor_of(request), tenants=tenants, **fields)
        return route_create(actor=actor_of(request), tenants=tenants, **fields)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The service has saved the tenants; what is left is who was given the route."""
        for formset in formsets:
            added = formset.save(commit=False)
            object_permissions_change(
                obj=form.instance,
                added=added,
                removed=formset.deleted_objects,
                by=person_of(request),
                actor=actor_of(request),
            )

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        route_delete(route=obj, actor=actor_of(request))

    @display(
        description="State", label={"Active": "success", "Off": "danger"}, ordering="is_active"
    )
    def state(self, route: Route) -> str:
        return "Active" if route.is_active else "Off"

    @action(description="Forget the kept answers of the selected routes", permissions=["change"])
    def purge_selected(self, request: HttpRequest, queryset: Any) -> None:
        routes = self.changeable(
            request, queryset.select_related("deployment__model_version__model")
        )
        for version in {route.deployment.model_version for route in routes}:
            if version is None:
                remote_responses_purge(actor=actor_of(request))
            else:
                version_responses_purge(model_version=version, actor=actor_of(request))
        messages.success(request, "What is kept of their models' answers is forgotten.")
