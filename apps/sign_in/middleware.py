"""Stands before every page that takes a session: one that is over is ended, and one whose person
must enrol a second factor opens the pages for that and nothing else."""

from collections.abc import Callable
from typing import Any, Final

from django.contrib import auth
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, HttpResponseRedirect
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin

from apps.sign_in.selectors import session_standing
from apps.sign_in.services.sessions import session_touch
from apps.sign_in.types import Standing

ENROL_PAGE: Final = "admin:two_factor_enrol"
# Open to whoever must enrol. Everything else is shut, pages that are not written yet included.
_ENROLMENT_PAGES: Final = frozenset({ENROL_PAGE, "admin:logout"})
# What open pages ask for by themselves: nobody may be sitting there.
_BACKGROUND_PAGES: Final = frozenset({"admin:overview", "admin:playground_models"})


class SessionGate(MiddlewareMixin):
    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if not request.user.is_authenticated:
            return None
        page = request.resolver_match.view_name if request.resolver_match else ""
        match session_standing(user=request.user, session=request.session):
            case Standing.OVER:
                auth.logout(request)  # the page decides what it shows to nobody
            case Standing.MUST_ENROL:
                return None if page in _ENROLMENT_PAGES else _to_enrolment(request)
            case Standing.COMPLETE:
                if page not in _BACKGROUND_PAGES:
                    session_touch(request.session)
        return None


def _to_enrolment(request: HttpRequest) -> HttpResponse:
    if request.method in ("GET", "HEAD"):
        return HttpResponseRedirect(reverse(ENROL_PAGE))
    return HttpResponseForbidden("Enrol a second factor first.", content_type="text/plain")
