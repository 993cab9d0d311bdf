"""The page of a rollout: how it goes, renewed while it is open, and the buttons that move it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from apps.audit.selectors import actor_of, events_before
from apps.core.access import access_in
from apps.core.admin import refused
from apps.core.exceptions import AppError
from apps.rbac.selectors import person_of
from apps.rollouts.pages import page_of
from apps.rollouts.selectors import rollout_report
from apps.rollouts.services import (
    rollout_abort,
    rollout_approve,
    rollout_pause,
    rollout_resume,
)
from apps.rollouts.types import RolloutReport

if TYPE_CHECKING:
    from apps.rollouts.models import Rollout

CHANGE: Final = "rollouts.change_rollout"
APPROVE: Final = "rollouts.approve_rollout"
_AUDIT: Final = "audit.view_auditevent"
_EVENTS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Act:
    """service: what a button does. permission: beside that to change the route. done: what is said
    then."""

    service: Callable[..., Any]
    permission: str
    done: str


_ACTS: Final[Mapping[str, _Act]] = {
    "approve": _Act(service=rollout_approve, permission=APPROVE, done="Approved."),
    "pause": _Act(
        service=rollout_pause,
        permission=CHANGE,
        done="Paused: its requests stay where they are, and what guards it goes on.",
    ),
    "resume": _Act(service=rollout_resume, permission=CHANGE, done="It goes on."),
    "abort": _Act(
        service=rollout_abort,
        permission=CHANGE,
        done="Aborted: the route leads where it led before.",
    ),
}
# In which states there is such a button.
_IN_STATES: Final[Mapping[str, frozenset[str]]] = {
    "approve": frozenset({"pending", "awaiting"}),
    "pause": frozenset({"running", "awaiting"}),
    "resume": frozenset({"paused"}),
    "abort": frozenset({"pending", "running", "awaiting", "paused"}),
}


def report_page(request: HttpRequest, *, rollout: "Rollout", site: AdminSite) -> HttpResponse:
    report = rollout_report(rollout.pk, by=person_of(request))
    if report is None:
        raise Http404
    context = {
        **site.each_context(request),
        "title": f"Rollout of {report.route_name}",
        "report": report,
        "acts": _acts(request, site, rollout, report),
        "refused": report.refused_said if report.state in _IN_STATES["approve"] else "",
        "may_route": page_of(site, "routing.Route").has_view_permission(request),
        "events": _events(request, rollout),
    }
    return TemplateResponse(request, "rollouts/report.html", context)


@require_POST
def report_act(request: HttpRequest, *, rollout: "Rollout", site: AdminSite) -> HttpResponse:
    """Do what was pressed (``act``), if it is still as whoever pressed it saw it (``seen``)."""
    name = request.POST.get("act", "")
    if name not in _ACTS:
        raise Http404
    act = _ACTS[name]
    if not _may(request, site, rollout, act):
        raise PermissionDenied
    location = reverse("admin:rollouts_rollout_change", args=[rollout.pk])
    seen = request.POST.get("seen", "")
    try:
        act.service(
            rollout=rollout,
            seen=int(seen) if seen.isascii() and seen.isdecimal() and len(seen) < 10 else 0,
            actor=actor_of(request),
            by=person_of(request),
            reason=request.POST.get("reason", "").strip()[:300],
        )
    except (AppError, ValidationError) as error:
        return refused(request, error, location=location)
    messages.success(request, act.done)
    return HttpResponseRedirect(location)


def _acts(
    request: HttpRequest, site: AdminSite, rollout: "Rollout", report: RolloutReport
) -> frozenset[str]:
    """Return what this person may press now."""
    found = {
        name
        for name, act in _ACTS.items()
        if report.state in _IN_STATES[name] and _may(request, site, rollout, act)
    }
    return frozenset(found if report.may_approve else found - {"approve"})


def _may(request: HttpRequest, site: AdminSite, rollout: "Rollout", act: _Act) -> bool:
    """As every door asks: the permission for rollouts, and that to change the route."""
    if rollout.route is None or not access_in(request).may(act.permission):
        return False
    routes = page_of(site, "routing.Route")
    return bool(routes.has_change_permission(request, rollout.route))


def _events(request: HttpRequest, rollout: "Rollout") -> list[Any]:
    """Return its story for who may read the audit trail, the oldest event first."""
    access = access_in(request)
    if not access.may(_AUDIT):
        return []
    found = events_before(
        timezone.now(),
        objects=[(rollout._meta.label, str(rollout.pk))],
        within=None,
        limit=_EVENTS,
    )
    return found[::-1]
