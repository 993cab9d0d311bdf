"""Routes: public model names and where they lead."""

from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.db.models import Sum, Window
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import ServiceModelAdmin, action, display
from apps.core.scoped_admin import GivenInline, ObjectScoped, ScopedInline
from apps.deployments.selectors import live_state
from apps.deployments.types import LIVE_STATE_TONES
from apps.rbac.selectors import person_of
from apps.rbac.services import object_permissions_change
from apps.routing.forms import RouteForm, TargetForm, TargetFormSet
from apps.routing.models import Route, RouteTarget, RouteUserObjectPermission
from apps.routing.services import (
    remote_responses_purge,
    route_create,
    route_delete,
    route_update,
    version_responses_purge,
)
from apps.routing.splits import route_splits
from apps.routing.types import SEE_SPLIT, RouteFields


class RouteTargetInline(ScopedInline):
    """Where the route leads. Whoever may change the route may change it."""

    model = RouteTarget
    form = TargetForm
    formset = TargetFormSet
    fields = ("deployment", "weight", "share", "fallback_order", "state")
    readonly_fields = ("share", "state")
    autocomplete_fields = ("deployment",)
    ordering_field = None
    extra = 0
    max_num = 16
    hide_title = True
    verbose_name = "deployment"
    verbose_name_plural = "deployments"

    def get_min_num(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        return 0 if obj else 1

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[RouteTarget]:
        rows: models.QuerySet[RouteTarget] = super().get_queryset(request)
        return (
            rows.select_related("deployment", "route")
            .prefetch_related("deployment__replicas__engine_process")
            .annotate(weights=Window(Sum("weight"), partition_by="route_id"))
        )

    @display(description="Share")
    def share(self, target: Any) -> str:
        weights = getattr(target, "weights", 0)
        return f"{100 * target.weight / weights:.1f} %" if weights and target.weight else "-"

    @display(description="State")
    def state(self, target: Any) -> str:
        if not target.pk:
            return "-"
        word = live_state(target.deployment).word
        return format_html(
            '<span class="co-badge" data-tone="{}">{}</span>', LIVE_STATE_TONES[word], word
        )


class RouteGivenInline(GivenInline):
    model = RouteUserObjectPermission


@admin.register(Route)
class RouteAdmin(ObjectScoped, ServiceModelAdmin):
    form = RouteForm
    list_display = ("name", "leads_to", "state", "description", "updated_at")
    list_filter = ("is_active",)
    search_fields = ("name", "description", "aliases__name", "targets__deployment__name")
    search_help_text = "A name, one of the further names, or a deployment"
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": (("name", "further_names"), "description", "is_active")}),
        ("Requests", {"fields": ("default_values",)}),
        ("Kept answers", {"fields": ("caches_responses",)}),
        ("For whom", {"fields": ("is_restricted", "tenants")}),
    )
    actions = ("purge_selected",)
    actions_detail = ("roll_out",)
    actions_row = ("roll_out",)
    autocomplete_fields = ("tenants",)
    inlines = (RouteTargetInline, RouteGivenInline)
    change_form_outer_before_template = "console/route_split.html"

    class Media:
        js = ("console/live.js",)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """With how its requests are shared, for who may see the requests of all."""
        context = dict(extra_context or {})
        route = self.get_object(request, object_id)
        if route is not None and all(access_in(request).may(each) for each in SEE_SPLIT):
            context["split"] = next(iter(route_splits([route.pk], now=timezone.now())), None)
        return super().change_view(request, object_id, form_url, context)  # type: ignore[no-any-return]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Route]:
        return super().get_queryset(request).prefetch_related("targets__deployment")

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """What the route is and where it leads is one change: ``save_related`` has both."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the route and where it leads, then who was given it."""
        targets = next(each.specs for each in formsets if isinstance(each, TargetFormSet))
        saved = self._saved(request, form, targets=targets, change=change)
        form.instance.__dict__.update(saved.__dict__)
        for formset in formsets:
            if isinstance(formset, TargetFormSet):
                continue
            added = formset.save(commit=False)
            object_permissions_change(
                obj=form.instance,
                added=added,
                removed=formset.deleted_objects,
                by=person_of(request),
                actor=actor_of(request),
            )

    def _saved(self, request: HttpRequest, form: Any, *, targets: Any, change: bool) -> Route:
        obj, given = form.instance, form.cleaned_data
        fields = RouteFields(
            name=obj.name,
            is_active=obj.is_active,
            description=obj.description,
            is_restricted=obj.is_restricted,
            caches_responses=obj.caches_responses,
            defaults=given["default_values"],
        )
        rest = {"targets": targets, "aliases": given["further_names"], "tenants": given["tenants"]}
        actor = actor_of(request)
        if change:
            return route_update(route=obj, actor=actor, **rest, **fields)
        return route_create(actor=actor, **rest, **fields)

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> list[Any]:
        """The audit event says what has changed."""
        return []

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        route_delete(route=obj, actor=actor_of(request))

    @display(description="Leads to")
    def leads_to(self, route: Route) -> str:
        """The deployments with their shares, then the chain of fallbacks."""
        targets = list(route.targets.all())
        weights = sum(target.weight for target in targets)
        shares = [
            f"{each.deployment} {100 * each.weight / weights:.0f} %"
            if len(targets) > 1
            else str(each.deployment)
            for each in targets
            if each.weight
        ]
        chain = [str(each.deployment) for each in targets if each.fallback_order is not None]
        return ", ".join(shares) + (f"; else {', '.join(chain)}" if chain else "")

    @display(
        description="State", label={"Active": "success", "Off": "danger"}, ordering="is_active"
    )
    def state(self, route: Route) -> str:
        return "Active" if route.is_active else "Off"

    @action(description="Roll out…", permissions=["roll_out"], icon="conversion_path")
    def roll_out(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The page on which another deployment takes its requests over."""
        query = urlencode({"route": object_id})
        return HttpResponseRedirect(f"{reverse('admin:rollouts_rollout_add')}?{query}")

    def has_roll_out_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return access_in(request).may("rollouts.add_rollout")

    @action(description="Forget the kept answers of the selected routes", permissions=["change"])
    def purge_selected(self, request: HttpRequest, queryset: Any) -> None:
        rows = queryset.prefetch_related("targets__deployment__model_version__model")
        versions = {
            target.deployment.model_version
            for route in self.changeable(request, rows)
            for target in route.targets.all()
        }
        for version in versions:
            if version is None:
                remote_responses_purge(actor=actor_of(request))
            else:
                version_responses_purge(model_version=version, actor=actor_of(request))
        messages.success(request, "What is kept of their models' answers is forgotten.")
