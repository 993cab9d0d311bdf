"""The ledger's pages beside its list: usage, as a page and as a file, reconciliation, and limits to
try. The admin site wraps them, so that only staff come this far."""

import csv
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.prices import currency_text
from apps.core.wording import cell_text, duration_text
from apps.metering.forms import ReconcileForm, UsageForm
from apps.metering.histograms import percentile_ms
from apps.metering.models import UsageRollup
from apps.metering.selectors import ledger_findings
from apps.metering.services import ledger_correct
from apps.metering.trial_page import trial_page
from apps.metering.usage_report import (
    UsageLine,
    UsageQuery,
    budget_lines,
    refusal_lines,
    usage_lines,
    usage_rollups,
    usage_total,
)
from apps.tenants.selectors import tenant_names

LINES_PER_PAGE: Final = 100
CSV_ROWS_MOST: Final = 100_000
_FINDINGS_SHOWN: Final = 200
_SEE: Final = "metering.view_usagerecord"
# Where whom or what a line is by has its page: app and model.
_PAGES: Final = {
    "tenant": ("tenants", "tenant"),
    "token": ("rbac", "apitoken"),
    "model": ("registry", "modelversion"),
}
_CSV_HEAD: Final = (
    "period_start", "tenant_id", "tenant", "api_token_id", "route", "model_version_id", "requests",
    "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "currency",
    "ttft_p50_ms", "ttft_p95_ms", "total_p50_ms", "total_p95_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A line in words. url: of the subject's page, where there is one for who looks."""

    line: UsageLine
    subject: str
    url: str
    cost: str
    ttft: str
    total: str


def ledger_urls(site: AdminSite) -> list[URLPattern]:
    """Return the pages, to stand before the list's own addresses."""
    pages = (
        ("usage/", usage_page, "metering_usage"),
        ("usage.csv", usage_csv, "metering_usage_csv"),
        ("reconcile/", reconcile_page, "metering_reconcile"),
        ("try-limits/", trial_page, "metering_try_limits"),
    )
    return [
        path(address, site.admin_view(view), kwargs={"site": site}, name=name)
        for address, view, name in pages
    ]


@require_safe
def usage_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    form = UsageForm(request.GET, in_sight=_tenants_in_sight(request))
    context = {
        **site.each_context(request),
        "title": "Usage",
        "form": form,
        "currency": settings.CURRENCY,
        "csv_query": request.GET.urlencode(),
    }
    if form.is_valid():
        context |= _usage(request, form.query(), page=_page(request))
        context["budgets"] = budget_lines(form.budget_tenants(), now=timezone.now())
        context["next_query"] = urlencode({**request.GET.dict(), "page": context["page"] + 1})
        context["previous_query"] = urlencode({**request.GET.dict(), "page": context["page"] - 1})
    return TemplateResponse(request, "admin/metering/usage.html", context)


@require_safe
def usage_csv(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """One line for each roll-up of what the page shows."""
    form = UsageForm(request.GET, in_sight=_tenants_in_sight(request))
    back = f"{reverse('admin:metering_usage')}?{request.GET.urlencode()}"
    if not form.is_valid():
        return HttpResponseRedirect(back)
    query = form.query()
    rollups = usage_rollups(query, limit=CSV_ROWS_MOST + 1)
    if len(rollups) > CSV_ROWS_MOST:
        text = f"That would be more than {CSV_ROWS_MOST:,} lines. Choose fewer days, or filter."
        messages.error(request, text)
        return HttpResponseRedirect(back)
    response = HttpResponse(content_type="text/csv; charset=utf-8")
    name = f"usage-{query.first}-{query.last}.csv"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    names = tenant_names({rollup.tenant_id for rollup in rollups})
    writer = csv.writer(response)
    writer.writerow(_CSV_HEAD)
    for rollup in rollups:
        writer.writerow(_csv_row(rollup, tenant=names.get(rollup.tenant_id, "")))
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def reconcile_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """Look only when somebody asks: it reads the ledger, and of every tenant."""
    access = access_in(request)
    if not access.may(_SEE):
        raise PermissionDenied
    may_correct = access.may("metering.change_usagerecord")
    now = timezone.now()
    is_asked = request.method == "POST"
    form = ReconcileForm(request.POST if is_asked else None, initial={"since": now.date()})
    context = {
        **site.each_context(request),
        "title": "Reconciliation",
        "form": form,
        "may_correct": may_correct,
        "is_asked": is_asked and form.is_valid(),
    }
    if context["is_asked"]:
        since = form.since_midnight()
        found = ledger_findings(since=since, now=now)
        if "correct" in request.POST:
            if not may_correct:
                raise PermissionDenied
            context["n_corrected"] = ledger_correct(found, now=now, actor=actor_of(request))
            found = ledger_findings(since=since, now=timezone.now())
        context |= {
            "findings": found[:_FINDINGS_SHOWN],
            "n_findings": len(found),
            "is_any_correctable": any(finding.is_correctable for finding in found),
        }
    return TemplateResponse(request, "admin/metering/reconcile.html", context)


def _usage(request: HttpRequest, query: UsageQuery, *, page: int) -> dict[str, Any]:
    lines = usage_lines(query, offset=(page - 1) * LINES_PER_PAGE, limit=LINES_PER_PAGE + 1)
    total = usage_total(query)
    return {
        "query": query,
        "rows": _rows(request, query, lines=lines[:LINES_PER_PAGE]),
        "total": total,
        "total_cost": currency_text(total.cost_micro),
        "refusals": refusal_lines(query),
        "page": page,
        "is_more": len(lines) > LINES_PER_PAGE,
    }


def _rows(request: HttpRequest, query: UsageQuery, *, lines: list[UsageLine]) -> list[_Row]:
    names: dict[int, str] = {}
    if query.by == "tenant":
        names = tenant_names({int(line.subject or 0) for line in lines})
    app, model = _PAGES.get(query.by or "", ("", ""))
    is_linked = bool(app) and access_in(request).may_somewhere(f"{app}.view_{model}")
    return [
        _Row(
            line=line,
            subject=_subject(query, line, names=names),
            url=reverse(f"admin:{app}_{model}_change", args=[line.subject])
            if is_linked and line.subject
            else "",
            cost=currency_text(line.cost_micro),
            ttft=f"{duration_text(line.ttft_p50_ms)} / {duration_text(line.ttft_p95_ms)}",
            total=f"{duration_text(line.total_p50_ms)} / {duration_text(line.total_p95_ms)}",
        )
        for line in lines
    ]


def _subject(query: UsageQuery, line: UsageLine, *, names: dict[int, str]) -> str:
    match query.by:
        case None:
            return ""
        case "tenant":
            return names.get(int(line.subject or 0), f"#{line.subject}")
        case "token" if not line.subject:
            return "no token"
        case "model" if not line.subject:
            return "at remote servers"
        case "route":
            return str(line.subject)
    return f"#{line.subject}"


def _csv_row(rollup: UsageRollup, *, tenant: str) -> list[object]:
    times = [
        percentile_ms(buckets, share)
        for buckets in (rollup.ttft_buckets, rollup.total_buckets)
        for share in (0.5, 0.95)
    ]
    return [
        f"{rollup.period_start:%Y-%m-%dT%H:%M:%SZ}",
        rollup.tenant_id,
        cell_text(tenant),
        rollup.api_token_id or "",
        cell_text(rollup.route_name),
        rollup.model_version_id,
        rollup.n_requests,
        rollup.n_failed,
        rollup.n_prompt_tokens,
        rollup.n_cached_tokens,
        rollup.n_completion_tokens,
        currency_text(rollup.cost_micro),
        settings.CURRENCY,
        *("" if value is None else round(value) for value in times),
    ]


def _page(request: HttpRequest) -> int:
    text = request.GET.get("page", "")
    return min(max(1, int(text)), 10_000) if text.isdecimal() and len(text) < 6 else 1


def _tenants_in_sight(request: HttpRequest) -> frozenset[int] | None:
    """Return the tenants whose usage somebody may see, None for all; refuse who may see none."""
    access = access_in(request)
    if not access.may_somewhere(_SEE):
        raise PermissionDenied
    return access.tenants_where(_SEE)
