"""The page that shows two versions side by side. The admin site wraps it: only staff come."""

from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from apps.core.access import access_in
from apps.registry.forms import CompareForm
from apps.registry.selectors import versions_compared


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
        found = versions_compared(left, right)
        context |= {
            "left": left,
            "right": right,
            "facts": found.facts,
            "figures": found.figures,
            "files": found.files,
        }
    return TemplateResponse(request, "admin/registry/compare.html", context)
