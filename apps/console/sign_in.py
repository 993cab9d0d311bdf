"""The two steps of signing in, as pages: name and password, then the code of whoever has a second
factor; and the page of somebody who failed too often."""

import math
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods
from unfold.forms import AuthenticationForm

from apps.console.forms import CodeForm
from apps.core.exceptions import AppError
from apps.sign_in.services.entry import (
    password_check,
    pending_user,
    sign_in_finish,
    sign_in_start,
)

if TYPE_CHECKING:
    from apps.rbac.models import User

NEXT: Final = "next"


class PasswordForm(AuthenticationForm):  # type: ignore[misc]
    """The theme's, but who may come in is the service's to say; every refusal reads the same."""

    def clean(self) -> dict[str, Any]:
        username, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if username and password:
            self.user_cache = password_check(
                request=self.request, username=username, password=password
            )
            if self.user_cache is None:
                raise self.get_invalid_login_error()
        return self.cleaned_data  # type: ignore[no-any-return]


class PasswordStep(LoginView):
    """Goes on to the code, or signs in who has none."""

    def form_valid(self, form: Any) -> HttpResponse:
        user: User = form.get_user()
        location = self.get_success_url()
        if not sign_in_start(request=self.request, user=user):
            location = f"{reverse('admin:login_code')}?{urlencode({NEXT: location})}"
        return HttpResponseRedirect(location)


@sensitive_post_parameters("code")
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def code_step(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    """The second step; without a first one it leads back to it."""
    user = pending_user(request)
    if user is None:
        query = urlencode({NEXT: request.GET[NEXT]}) if NEXT in request.GET else ""
        return HttpResponseRedirect(f"{reverse('admin:login')}{'?' if query else ''}{query}")
    form = CodeForm(request.POST or None)
    if form.is_valid():
        try:
            if sign_in_finish(request=request, user=user, code=form.cleaned_data["code"]):
                return HttpResponseRedirect(location_after(request))
            form.add_error(None, "This code is not right. A code works once and for a minute.")
        except AppError as error:
            form.add_error(None, error.message)
    context = {
        **site.each_context(request),
        "title": "Second step",
        "form": form,
        "pending_username": user.get_username(),
        "app_path": request.get_full_path(),
        "login_url": reverse("admin:login"),
    }
    return TemplateResponse(request, "console/login_code.html", context)


def location_after(request: HttpRequest) -> str:
    """Where signing in leads to: what ``next`` names, if that is a page of ours."""
    view = LoginView()
    view.setup(request)
    return view.get_success_url()


def locked_page(request: HttpRequest, *_: Any) -> HttpResponse:
    """Answers in place of whatever met a lock; the same for names that exist and that do not."""
    until = getattr(request, "sign_in_locked_until", None)
    wait_s = (until - timezone.now()).total_seconds() if until else None
    if wait_s is None:
        wait_s = settings.AXES_COOLOFF_TIME.total_seconds()
    context = {
        **admin.site.each_context(request),
        "title": "Locked for a while",
        "until": until,
        "wait_minutes": max(1, math.ceil(wait_s / 60)),
        "login_url": reverse("admin:login"),
    }
    response = render(request, "console/login_locked.html", context, status=429)
    response["Retry-After"] = str(max(1, math.ceil(wait_s)))
    response["Cache-Control"] = "no-store"
    return response
