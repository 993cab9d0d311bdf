"""The page that shows two versions side by side. The admin site wraps it: only staff come."""

from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from apps.core.access import access_in
from apps.registry.comparing import CompareRow, facts_compared, figures_compared, files_compared
from apps.registry.forms import CompareForm
from apps.registry.models import ModelVersion
from apps.registry.selectors import verifications_passed


def compare_url(site: AdminSite) -> URLPattern:
    """Return the page's address, to stand before the list's own."""
    return path(
        "compare/",
        site.admin_view(compare_page),
        kwargs={"site": site},
        name="registry_modelversion_compare",
    )


@require_safe
def compare_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    if not access_in(request).may("registry.view_modelversion"):
        raise PermissionDenied
    form = CompareForm(request.GET or None)
    context: dict[str, Any] = {
        **site.each_context(request),
        "title": "Compare versions",
        "form": form,
    }
    if form.is_valid():
        left, right = form.cleaned_data["left"], form.cleaned_data["right"]
        context |= {
            "left": left,
            "right": right,
            "facts": facts_compared(left, right),
            "figures": _figures(left, right),
            "files": files_compared(left, right),
        }
    return TemplateResponse(request, "admin/registry/compare.html", context)


def _figures(left: ModelVersion, right: ModelVersion) -> list[CompareRow]:
    """Return what the newest verification that each passed has measured."""
    runs = verifications_passed([left.pk, right.pk])
    of_left, of_right = (runs[each.pk].figures if each.pk in runs else {} for each in (left, right))
    return figures_compared(left=of_left, right=of_right)
