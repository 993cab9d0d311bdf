"""The usage ledger, to read. The list shows the newest rows; an older one is found by its id."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.core.access import access_in
from apps.core.admin import ReadOnlyAdmin, display
from apps.core.prices import currency_text
from apps.core.scoped_admin import TenantScoped
from apps.core.wording import duration_text
from apps.metering.models import UsageRecord
from apps.metering.selectors import usage_record_newest
from apps.metering.views import ledger_urls
from apps.tenants.selectors import tenant_choices, tenant_names

# Filters look at these rows only, so that one that matches nothing costs no scan of the ledger.
LISTED_ROWS = 20_000
_TENANTS_LISTED = 50


class TenantFilter(admin.SimpleListFilter):
    title = "tenant"
    parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        within = access_in(request).tenants_where("metering.view_usagerecord")
        choices = tenant_choices(limit=_TENANTS_LISTED, within=within)
        return [(str(pk), name) for pk, name in choices]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.filter(tenant_id=value) if value and value.isdecimal() else queryset


class DoorFilter(admin.SimpleListFilter):
    title = "door"
    parameter_name = "door"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("rest", "REST"),
            ("websocket", "WebSocket"),
            ("batch", "Batch"),
            ("judge", "Judge"),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(door=self.value()) if self.value() else queryset


def _count(title: str, field: str) -> Callable[[Any, UsageRecord], str]:
    """A column of the model under a name for people."""

    @display(description=title)
    def column(self: Any, row: UsageRecord) -> str:
        return f"{getattr(row, field):,}"

    return column


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin, TenantScoped):
    list_display = (
        "when",
        "short_id",
        "tenant",
        "route",
        "door",
        "result",
        "tokens",
        "ttft",
        "total",
    )
    list_display_links = ("when",)
    list_filter = ("state", "outcome", DoorFilter, TenantFilter)
    search_fields = ("request_id",)
    search_help_text = "The whole request id"
    ordering = ("-id",)
    sortable_by = ()
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("request_id", "created_at"),
                    ("result", "finish_reason"),
                    "is_from_cache",
                )
            },
        ),
        (
            "Tokens",
            {
                "fields": (
                    ("prompt_tokens", "cached_tokens"),
                    ("completion_tokens", "reserved_tokens"),
                    ("charged_tokens", "cost"),
                )
            },
        ),
        ("Times", {"fields": (("ttft", "total"), ("settled_at", "expires_at"))}),
        (
            "Where",
            {
                "fields": (
                    ("tenant", "end_user"),
                    ("route_name", "experiment_arm"),
                    ("door", "endpoint"),
                    ("engine_name", "engine_epoch"),
                    ("deployment_id", "model_version_id"),
                    ("api_token_id", "user_id"),
                    ("attempt", "is_fallback"),
                    "error_code",
                )
            },
        ),
    )

    prompt_tokens = _count("Prompt tokens", "n_prompt_tokens")
    cached_tokens = _count("Of these from the prefix cache", "n_cached_tokens")
    completion_tokens = _count("Completion tokens", "n_completion_tokens")
    reserved_tokens = _count("Reserved at most", "n_reserved_tokens")
    charged_tokens = _count("Counted in budgets", "n_charged_tokens")

    def get_urls(self) -> list[Any]:
        return [*ledger_urls(self.admin_site), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[UsageRecord]:
        rows: models.QuerySet[UsageRecord] = super().get_queryset(request)
        match = request.resolver_match
        is_list = match is not None and match.url_name == "metering_usagerecord_changelist"
        if not is_list or request.GET.get("q"):
            return rows
        seen = access_in(request).tenants_where("metering.view_usagerecord")
        newest = usage_record_newest(seen)
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
    def when(self, row: UsageRecord) -> datetime:
        return row.created_at

    @display(description="Request")
    def short_id(self, row: UsageRecord) -> SafeString:
        """The request's way on one page; the row itself opens from its time."""
        url = reverse("admin:request_page", args=[row.request_id])
        return format_html(
            '<a href="{}" title="{}">…{}</a>', url, row.request_id, row.request_id[-10:]
        )

    @display(description="Tenant")
    def tenant(self, row: Any) -> str:
        if not hasattr(row, "tenant_name"):
            row.tenant_name = tenant_names({row.tenant_id}).get(row.tenant_id)
        return row.tenant_name or f"#{row.tenant_id}"

    @display(description="Route")
    def route(self, row: UsageRecord) -> str:
        return row.route_name

    @display(
        description="Result",
        label={
            "Completed": "success",
            "In flight": "info",
            "Aborted by the client": "warning",
            "Failed": "danger",
            "Interrupted": "danger",
        },
    )
    def result(self, row: UsageRecord) -> str:
        return "In flight" if row.state == UsageRecord.State.RESERVED else row.get_outcome_display()

    @display(description="Tokens in → out")
    def tokens(self, row: UsageRecord) -> str:
        return f"{row.n_prompt_tokens:,} → {row.n_completion_tokens:,}"

    @display(description="Cost")
    def cost(self, row: UsageRecord) -> str:
        return f"{currency_text(row.cost_micro)} {settings.CURRENCY}"

    @display(description="First token")
    def ttft(self, row: UsageRecord) -> str:
        return duration_text(row.ttft_ms)

    @display(description="Total")
    def total(self, row: UsageRecord) -> str:
        return duration_text(row.total_ms)
