"""Experiments: set up, watched and ended here; layers; and who took part."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyAdmin, ServiceModelAdmin, display
from apps.core.tenancy import every_tenant
from apps.experiments.models import Assignment, Experiment, Layer
from apps.experiments.page_reads import last_looks
from apps.experiments.results_page import results_file_view, results_view
from apps.experiments.results_shown import list_verdict, looked_subjects
from apps.experiments.services import experiment_delete, layer_create, layer_update
from apps.experiments.setup_acting import setup_view
from apps.tenants.selectors import tenant_names

_WHOSE = "an experiment is the platform's, whoever takes part"
_STATE_LABELS = {"Draft": "info", "Running": "success", "Stopped": "warning"}


@admin.register(Experiment)
class ExperimentAdmin(ServiceModelAdmin):
    """A draft's page is that on which it is set up; of one that runs or ran, its results."""

    list_display = ("name", "state_badge", "route", "assigned_by", "subjects", "verdict", "since")
    list_filter = ("state",)
    search_fields = ("name", "hypothesis", "route__name")
    search_help_text = "A name, a route, or words of the hypothesis"
    ordering = ("-id",)
    sortable_by = ()
    fields = ("name", "hypothesis", "route", "state", "subject")

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.csv_view)
        address = "<path:object_id>/results.csv"
        return [
            path(address, view, name="experiments_experiment_csv"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Experiment]:
        rows: models.QuerySet[Experiment] = super().get_queryset(request)
        return rows.select_related("route", "winner").prefetch_related("variants")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """With the last look at each that is listed, in one query."""
        response = super().changelist_view(request, extra_context)
        changes = getattr(response, "context_data", {}).get("cl")
        if changes is not None:
            looks = last_looks([row.pk for row in changes.result_list])
            for row in changes.result_list:
                row.last_look = looks.get(row.pk)
        return response

    def add_view(
        self,
        request: HttpRequest,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        copied = None
        if key := request.GET.get("copy"):
            copied = self.get_object(request, key)
            if copied is None or not self.has_view_permission(request, copied):
                raise Http404
        return setup_view(request, self.admin_site, draft=None, copied=copied, page=self)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        experiment = self._experiment(request, object_id)
        is_draft = experiment.state == Experiment.State.DRAFT
        if is_draft and self.has_change_permission(request, experiment):
            return setup_view(request, self.admin_site, draft=experiment, copied=None, page=self)
        return results_view(request, self.admin_site, experiment=experiment, page=self)

    def csv_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return results_file_view(request, experiment=self._experiment(request, object_id))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        is_running = isinstance(obj, Experiment) and obj.state == Experiment.State.RUNNING
        return bool(super().has_delete_permission(request, obj)) and not is_running

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        experiment_delete(experiment=obj, seen=obj.version, actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What goes with an experiment is counted, not listed: it may be a hundred thousand
        rows."""
        listed = [f"{each}, with all that was counted of it" for each in objs]
        return listed, {"experiments": len(listed)}, set(), []

    def may_move_traffic(self, request: HttpRequest, route: Any) -> bool:
        """Whether this person may change where a route's requests go; None: of some route."""
        routes = next(
            page
            for model, page in self.admin_site._registry.items()
            if model._meta.label == "routing.Route"
        )
        return bool(routes.has_change_permission(request, route))

    def _experiment(self, request: HttpRequest, object_id: str) -> Experiment:
        """Return one that this person may see. Raises PermissionDenied, Http404."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        found = self.get_object(request, object_id)
        if found is None:
            raise Http404
        return found  # type: ignore[no-any-return]

    @display(description="State", label=_STATE_LABELS)
    def state_badge(self, experiment: Experiment) -> str:
        return experiment.get_state_display()

    @display(description="By")
    def assigned_by(self, experiment: Experiment) -> str:
        return experiment.get_subject_display()

    @display(description="Subjects")
    def subjects(self, experiment: Any) -> str:
        return looked_subjects(getattr(experiment, "last_look", None))

    @display(description="Verdict")
    def verdict(self, experiment: Any) -> str:
        return list_verdict(experiment, getattr(experiment, "last_look", None))

    @display(description="Since")
    def since(self, experiment: Experiment) -> Any:
        return experiment.started_at or experiment.created_at


@admin.register(Layer)
class LayerAdmin(ServiceModelAdmin):
    list_display = ("name", "held_out", "n_experiments")
    search_fields = ("name",)
    ordering = ("name",)
    sortable_by = ()
    fields = ("name", "holdout_percent")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Layer]:
        rows: models.QuerySet[Layer] = super().get_queryset(request)
        running = models.Q(experiments__state=Experiment.State.RUNNING)
        return rows.annotate(n_running=models.Count("experiments", filter=running))

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = {"name": obj.name, "holdout_percent": obj.holdout_percent}
        if change:
            return layer_update(layer=obj, seen=obj.version, actor=actor_of(request), **fields)
        return layer_create(actor=actor_of(request), **fields)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description="Held out")
    def held_out(self, layer: Layer) -> str:
        return f"{layer.holdout_percent:g} %"

    @display(description="Experiments that run")
    def n_experiments(self, layer: Any) -> int:
        return int(layer.n_running)


class ExperimentFilter(admin.SimpleListFilter):
    title = "experiment"
    parameter_name = "experiment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        rows = Experiment.objects.exclude(state=Experiment.State.DRAFT).order_by("-id")
        return [(str(pk), name) for pk, name in rows.values_list("pk", "name")[:50]]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        is_key = value is not None and value.isascii() and value.isdecimal() and len(value) <= 18
        return queryset.filter(experiment_id=value) if is_key else queryset


@admin.register(Assignment)
class AssignmentAdmin(ReadOnlyAdmin):
    """Who took part in what, to look at; by digests, which say nothing of whom they stand for."""

    list_display = (
        "subject", "experiment_link", "variant", "tenant", "door", "n_requests", "crossed",
        "first_seen_at", "last_seen_at",
    )  # fmt: skip
    list_filter = (ExperimentFilter,)
    list_select_related = ("experiment", "variant")
    search_fields = ("subject",)
    search_help_text = "The whole digest of a subject"
    ordering = ("-id",)
    sortable_by = ()
    fields = (
        ("subject", "tenant"), ("experiment", "variant"), ("n_requests", "is_crossed"),
        ("first_seen_at", "last_seen_at"),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Assignment]:
        return Assignment.objects.of_tenants(None).order_by("-id")

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        """An exact match uses the index, which begins with the experiment; Django's own "="
        ignores case and would scan."""
        if not (term := search_term.strip()):
            return queryset, False
        known = list(Experiment.objects.values_list("pk", flat=True))
        return queryset.filter(experiment_id__in=known, subject=term), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        with every_tenant(_WHOSE):
            response = super().changelist_view(request, extra_context)
            changes = getattr(response, "context_data", {}).get("cl")
            if changes is not None:
                names = tenant_names({row.tenant_id for row in changes.result_list})
                for row in changes.result_list:
                    row.tenant_name = names.get(row.tenant_id)
                response.render()
        return response

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        with every_tenant(_WHOSE):
            response = super().changeform_view(request, object_id, form_url, extra_context)
            if isinstance(response, TemplateResponse):
                response.render()
        return response

    @display(description="Experiment")
    def experiment_link(self, row: Assignment) -> str | SafeString:
        url = reverse("admin:experiments_experiment_change", args=[row.experiment_id])
        return format_html('<a href="{}">{}</a>', url, row.experiment.name)

    @display(description="Tenant")
    def tenant(self, row: Any) -> str:
        if not hasattr(row, "tenant_name"):
            row.tenant_name = tenant_names({row.tenant_id}).get(row.tenant_id)
        return row.tenant_name or f"#{row.tenant_id}"

    @display(description="In two arms")
    def crossed(self, row: Assignment) -> str:
        return "Yes" if row.is_crossed else "-"
