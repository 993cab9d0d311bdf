"""Pages of the full Django stack. The doors under /v1/ and health are mounted in config/asgi.py."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView, TemplateView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path(
        "docs/api",
        TemplateView.as_view(template_name="gateway/api_reference.html"),
        name="api-reference",
    ),
]
