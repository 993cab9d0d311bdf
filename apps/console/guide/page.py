"""The page itself, at one address that names what it is about: ``?import=5``, ``?version=7``."""

from collections.abc import Mapping
from typing import Any, Final

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_http_methods

from apps.console.guide.acting import Act, Powers, acted, guide_url, powers_of
from apps.console.guide.asking import Asked, deploy_asked, import_asked, route_asked
from apps.console.guide.steps import Step, steps_of
from apps.console.guide.subject import (
    NEW,
    Subject,
    imports_open,
    subject_read,
    versions_newest,
)
from apps.console.guide.weights import SHARES
from apps.core.access import access_in
from apps.registry.selectors import figure_texts

SEE: Final = "registry.view_modelversion"


def guide_urls(site: AdminSite) -> list[URLPattern]:
    return [path("guide/", site.admin_view(guide_page), kwargs={"site": site}, name="guide")]


@require_http_methods(["GET", "HEAD", "POST"])
def guide_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    if not access_in(request).may(SEE):
        raise PermissionDenied
    subject = subject_read(request, site)
    if subject.job is not None and subject.job.model_version_id is not None:
        return HttpResponseRedirect(guide_url(f"version={subject.job.model_version_id}"))
    powers = powers_of(request, site, subject)
    given: dict[str, Asked] = {}
    if request.method == "POST":
        step, answer = acted(Act(request=request, site=site, subject=subject, powers=powers))
        if not isinstance(answer, Asked):
            return answer
        given[step] = answer
    context = {
        **site.each_context(request),
        "title": "Guided rollout",
        **_shown(request, site, subject, powers=powers, given=given),
    }
    return TemplateResponse(request, "console/guide/page.html", context)


def _shown(
    request: HttpRequest,
    site: AdminSite,
    subject: Subject,
    *,
    powers: Powers,
    given: Mapping[str, Asked],
) -> dict[str, Any]:
    steps = steps_of(subject)
    asked = {
        step.key: given.get(step.key) or _asked(request, site, subject, step, powers=powers)
        for step in steps
    }
    is_begun = subject.version is not None or subject.job is not None
    return {
        "subject": subject,
        "steps": steps,
        "powers": powers,
        "asked": asked,
        "shares": SHARES,
        "here": subject.query(),
        "queries": {
            "share": subject.query(share=""),
            "deploy": subject.query(deployment=NEW, route=None),
            "route": subject.query(route=NEW),
        },
        "figures": figure_texts(subject.passed.figures) if subject.passed is not None else (),
        "imports": () if is_begun else imports_open(request, site),
        "versions": () if is_begun else versions_newest(request, site),
    }


def _asked(
    request: HttpRequest, site: AdminSite, subject: Subject, step: Step, *, powers: Powers
) -> Asked | None:
    """Return what a step asks; None where it asks nothing, or not this person."""
    match step.key:
        case "import" if powers.may_import and step.mark in ("next", "bad"):
            return import_asked(request, site, subject)
        case "deploy" if powers.may_deploy and subject.is_deployable and not subject.deployment:
            return deploy_asked(request, site, subject)
        case "route" if powers.may_route and subject.deployment is not None:
            return route_asked(request, site, subject)
    return None
