"""Routes: public model names and where they lead."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from apps.audit.selectors import actor_of
from apps.core.admin import ServiceModelAdmin, display
from apps.routing.models import Route
from apps.routing.services import route_create, route_delete, route_update
from apps.routing.types import RouteFields


@admin.register(Route)
class RouteAdmin(ServiceModelAdmin):
    list_display = ("name", "deployment", "state", "description", "updated_at")
    list_filter = ("is_active",)
    list_select_related = ("deployment",)
    search_fields = ("name", "description", "deployment__name")
    ordering = ("name",)
    fields = (("name", "deployment"), "description", "is_active")
    autocomplete_fields = ("deployment",)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = RouteFields(
            name=obj.name,
            deployment=obj.deployment,
            is_active=obj.is_active,
            description=obj.description,
        )
        if change:
            return route_update(route=obj, actor=actor_of(request), **fields)
        return route_create(actor=actor_of(request), **fields)

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        route_delete(route=obj, actor=actor_of(request))

    @display(
        description="State", label={"Active": "success", "Off": "danger"}, ordering="is_active"
    )
    def state(self, route: Route) -> str:
        return "Active" if route.is_active else "Off"
