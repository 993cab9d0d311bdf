"""What was said of answers, to read. The list shows the newest rows; what was said of one request
is found by its id."""

from datetime import datetime
from typing import Any, Final

from django.contrib import admin
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.core.access import access_in
from apps.core.admin import ReadOnlyAdmin, display
from apps.core.scoped_admin import TenantScoped
from apps.feedback.models import MetricEvent
from apps.feedback.selectors import metric_event_newest
from apps.feedback.types import FEEDBACK, JUDGE_PREFIX
from apps.tenants.selectors import tenant_choices, tenant_names

# Filters look at these rows only, so that one that matches nothing costs no scan of all.
LISTED_ROWS: Final = 20_000
_TENANTS_LISTED: Final = 50
_COMMENT_SHOWN: Final = 80
_SEE: Final = "feedback.view_metricevent"
_KINDS: Final[dict[str, tuple[str, Q]]] = {
    "up": ("Thumbs up", Q(name=FEEDBACK, value=1.0)),
    "down": ("Thumbs down", Q(name=FEEDBACK, value=0.0)),
    "commented": ("Thumbs with a comment", Q(name=FEEDBACK) & ~Q(comment="")),
    "judge": ("Scores of judges", Q(name__startswith=JUDGE_PREFIX)),
    "event": ("Events of programs", ~Q(name=FEEDBACK) & ~Q(name__startswith=JUDGE_PREFIX)),
}


class KindFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(key, title) for key, (title, _) in _KINDS.items()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.filter(_KINDS[value][1]) if value in _KINDS else queryset


class TenantFilter(admin.SimpleListFilter):
    title = "tenant"
    parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        within = access_in(request).tenants_where(_SEE)
        choices = tenant_choices(limit=_TENANTS_LISTED, within=within)
        return [(str(pk), name) for pk, name in choices]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.filter(tenant_id=value) if value and value.isdecimal() else queryset


@admin.register(MetricEvent)
class MetricEventAdmin(ReadOnlyAdmin, TenantScoped):
    list_display = ("when", "kind", "said", "short_comment", "about", "tenant")
    list_display_links = ("when",)
    list_filter = (KindFilter, TenantFilter)
    search_fields = ("request_id",)
    search_help_text = "The whole request id"
    ordering = ("-id",)
    sortable_by = ()
    fieldsets = (
        (None, {"fields": (("kind", "said"), "comment", ("created_at", "event_id"))}),
        (
            "About",
            {"fields": (("whole_request", "end_user"), ("tenant", "api_token_id", "user_id"))},
        ),
        (
            "Compared",
            {
                "fields": (
                    ("experiment_arm", "is_in_experiments"),
                    ("rollout_arm", "is_in_rollout"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[MetricEvent]:
        rows: models.QuerySet[MetricEvent] = super().get_queryset(request)
        match = request.resolver_match
        is_list = match is not None and match.url_name == "feedback_metricevent_changelist"
        if not is_list or request.GET.get("q"):
            return rows
        newest = metric_event_newest(access_in(request).tenants_where(_SEE))
        # From both sides: else whose rows are old would have everybody's newer ones looked at.
        return rows.filter(id__gt=newest - LISTED_ROWS, id__lte=newest)

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        """An exact match uses the index; Django's own "=" ignores case and would scan."""
        term = search_term.strip()
        return (queryset.filter(request_id=term) if term else queryset), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        response = super().changelist_view(request, extra_context)
        changes = getattr(response, "context_data", {}).get("cl")
        if changes is not None:
            names = tenant_names({row.tenant_id for row in changes.result_list})
            for row in changes.result_list:
                row.tenant_name = names.get(row.tenant_id)
        return response

    @display(description="When")
    def when(self, row: MetricEvent) -> datetime:
        return row.created_at

    @display(description="Name")
    def kind(self, row: MetricEvent) -> str:
        return "Feedback" if row.name == FEEDBACK else row.name

    @display(description="Said", label={"Thumbs up": "success", "Thumbs down": "danger"})
    def said(self, row: MetricEvent) -> str:
        return row.said

    @display(description="Comment")
    def short_comment(self, row: MetricEvent) -> str:
        if len(row.comment) <= _COMMENT_SHOWN:
            return row.comment or "—"
        return row.comment[: _COMMENT_SHOWN - 1] + "…"

    @display(description="About")
    def about(self, row: MetricEvent) -> SafeString | str:
        if not row.request_id:
            return row.end_user or "—"
        return _request_link(row, text=f"…{row.request_id[-10:]}")

    @display(description="Request")
    def whole_request(self, row: MetricEvent) -> SafeString | str:
        return _request_link(row, text=row.request_id) if row.request_id else "—"

    @display(description="Tenant")
    def tenant(self, row: Any) -> str:
        if not hasattr(row, "tenant_name"):
            row.tenant_name = tenant_names({row.tenant_id}).get(row.tenant_id)
        return row.tenant_name or f"#{row.tenant_id}"


def _request_link(row: MetricEvent, *, text: str) -> SafeString:
    url = reverse("admin:request_page", args=[row.request_id])
    return format_html('<a href="{}" title="{}">{}</a>', url, row.request_id, text)
