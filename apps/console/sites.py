"""The admin site that operators see."""

from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import PasswordChangeView
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_safe
from unfold.sites import UnfoldAdminSite

from apps.console.access_review import access_review_urls
from apps.console.account import account_urls
from apps.console.forms import OwnPasswordForm
from apps.console.guide.page import guide_urls
from apps.console.playground import playground_urls
from apps.console.request_page import request_urls
from apps.console.selectors import dashboard
from apps.console.sign_in import NEXT, PasswordForm, PasswordStep, location_after
from apps.console.single_sign_on import leave_page, single_sign_on_urls
from apps.console.watching import watch_urls
from apps.sign_in.selectors import is_single_sign_on_on, session_standing
from apps.sign_in.services.single_sign_on import provider_logout_url
from apps.sign_in.types import Standing


class OwnPasswordView(PasswordChangeView):
    """The form knows where it comes from."""

    form_class = OwnPasswordForm

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "request": self.request}


def _single_sign_on_button(request: HttpRequest) -> dict[str, str]:
    if not is_single_sign_on_on():
        return {}
    query = urlencode({NEXT: location_after(request)})
    return {
        "single_sign_on": settings.OIDC_NAME,
        "single_sign_on_url": f"{reverse('admin:sso_start')}?{query}",
    }


class ConsoleAdminSite(UnfoldAdminSite):
    index_title = "Overview"
    index_template = "console/overview.html"
    login_template = "console/login.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Staff, and fully signed in; the middleware asks the same before any page."""
        standing = session_standing(user=request.user, session=request.session)
        return bool(super().has_permission(request)) and standing is Standing.COMPLETE

    @method_decorator([never_cache, login_not_required, sensitive_post_parameters("password")])
    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseBase:
        """As Django does it, but a second step may follow."""
        if request.method == "GET" and self.has_permission(request):
            return HttpResponseRedirect(reverse("admin:index"))
        context = {
            **self.each_context(request),
            "title": "Log in",
            "app_path": request.get_full_path(),
            "username": request.user.get_username(),
            **_single_sign_on_button(request),
            **(extra_context or {}),
        }
        view = PasswordStep.as_view(
            authentication_form=PasswordForm,
            template_name=self.login_template,
            extra_context=context,
        )
        return view(request)

    def logout(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseBase:
        """Here first, whatever becomes of it at the provider that somebody came by."""
        back_to = request.build_absolute_uri(reverse("admin:login"))
        url = provider_logout_url(request, back_to=back_to) if request.method == "POST" else None
        response: HttpResponseBase = super().logout(request, extra_context)
        if url is None:
            return response
        return leave_page(request, self, url=url, title="Signed out here")

    def get_urls(self) -> list[URLPattern | URLResolver]:
        return [
            path("overview/", self.admin_view(require_safe(self.overview)), name="overview"),
            *playground_urls(self),
            *account_urls(self),
            *single_sign_on_urls(self),
            *request_urls(self),
            *access_review_urls(self),
            *watch_urls(self),
            *guide_urls(self),
            *super().get_urls(),
        ]

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {
            **self.each_context(request),
            "title": self.index_title,
            "dashboard": dashboard(),
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.index_template, context)

    def overview(self, request: HttpRequest) -> HttpResponse:
        """The part of the index that the page renews by itself."""
        response = TemplateResponse(
            request, "console/overview_live.html", {"dashboard": dashboard()}
        )
        response["Cache-Control"] = "no-store"
        return response

    def password_change(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseBase:
        """As the theme does it, but the new password is set by the service and told in the audit
        trail."""
        view = OwnPasswordView.as_view(
            success_url=reverse(f"{self.name}:password_change_done"),
            template_name="registration/password_change_form.html",
            extra_context={**self.each_context(request), **(extra_context or {})},
        )
        return view(request)
