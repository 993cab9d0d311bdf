"""A request's way on one page, for who may see its row in the ledger."""

from typing import Final

from django.conf import settings
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from apps.console.request_report import request_report
from apps.core.access import access_in
from apps.metering.selectors import usage_record_get

_SEE: Final = "metering.view_usagerecord"


def request_urls(site: AdminSite) -> list[URLPattern]:
    return [
        path(
            "requests/<str:request_id>/",
            site.admin_view(request_page),
            kwargs={"site": site},
            name="request_page",
        )
    ]


@require_safe
def request_page(request: HttpRequest, *, request_id: str, site: AdminSite) -> HttpResponse:
    """One of another tenant is not there, for whom it would not be in the list either."""
    access = access_in(request)
    if not access.may_somewhere(_SEE):
        raise PermissionDenied
    record = None
    if "\0" not in request_id:
        record = usage_record_get(request_id=request_id, within=access.tenants_where(_SEE))
    if record is None:
        raise Http404
    context = {
        **site.each_context(request),
        "title": "Request",
        "report": request_report(record, access=access),
        "record": record,
        "currency": settings.CURRENCY,
    }
    return TemplateResponse(request, "console/request.html", context)
