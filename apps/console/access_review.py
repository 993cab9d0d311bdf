"""The access review as a page and as a file: who may do what, where, and why. For those who may see
all people, roles and tokens."""

import csv
from typing import Any, Final

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from apps.core.access import access_in
from apps.core.wording import cell_text
from apps.rbac.selectors import access_review
from apps.rbac.types import AccessEntry

ENTRIES_SHOWN: Final = 500
_SEE: Final = ("rbac.view_user", "rbac.view_rolegrant", "rbac.view_apitoken")


class ReviewForm(forms.Form):
    """Empty fields leave nothing out."""

    user = forms.CharField(label="Person", required=False, max_length=150)
    tenant = forms.CharField(label="Tenant (its slug)", required=False, max_length=60)
    permission = forms.CharField(label="Permission", required=False, max_length=150)

    def entries(self) -> "list[AccessEntry]":
        wanted = self.cleaned_data["permission"].strip().lower()
        found = access_review(
            username=self.cleaned_data["user"].strip(),
            tenant_slug=self.cleaned_data["tenant"].strip(),
        )
        # Whoever may do everything may do this.
        return [each for each in found if wanted in each.permission or each.permission == "*"]


def access_review_urls(site: AdminSite) -> list[URLPattern]:
    pages = (
        ("access-review/", review_page, "access_review"),
        ("access-review.csv", review_csv, "access_review_csv"),
    )
    return [
        path(address, site.admin_view(view), kwargs={"site": site}, name=name)
        for address, view, name in pages
    ]


@require_safe
def review_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    form = _form(request)
    entries = form.entries() if form.is_valid() else []
    context: dict[str, Any] = {
        **site.each_context(request),
        "title": "Access review",
        "form": form,
        "entries": entries[:ENTRIES_SHOWN],
        "n_entries": len(entries),
        "query": request.GET.urlencode(),
    }
    return TemplateResponse(request, "console/access_review.html", context)


@require_safe
def review_csv(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    form = _form(request)
    response = HttpResponse(content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="access-review.csv"'
    writer = csv.writer(response)
    writer.writerow(AccessEntry.columns())
    for entry in form.entries() if form.is_valid() else ():
        writer.writerow(cell_text(str(value)) for value in entry.row())
    return response


def _form(request: HttpRequest) -> ReviewForm:
    """Return the filter; raises PermissionDenied for who may not see everyone's access."""
    access = access_in(request)
    if not all(access.may(permission) for permission in _SEE):
        raise PermissionDenied
    return ReviewForm({name: request.GET.get(name, "") for name in ReviewForm.base_fields})
