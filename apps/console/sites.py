"""The admin site that operators see."""

from typing import Any

from django.contrib.auth.views import PasswordChangeView
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.views.decorators.http import require_safe
from unfold.sites import UnfoldAdminSite

from apps.console.forms import OwnPasswordForm
from apps.console.playground import playground_urls
from apps.console.selectors import dashboard


class ConsoleAdminSite(UnfoldAdminSite):
    index_title = "Overview"
    index_template = "console/overview.html"
    login_template = "console/login.html"

    def get_urls(self) -> list[URLPattern | URLResolver]:
        return [
            path("overview/", self.admin_view(require_safe(self.overview)), name="overview"),
            *playground_urls(self),
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
        view = PasswordChangeView.as_view(
            form_class=OwnPasswordForm,
            success_url=reverse(f"{self.name}:password_change_done"),
            template_name="registration/password_change_form.html",
            extra_context={**self.each_context(request), **(extra_context or {})},
        )
        return view(request)
