"""The admin site that operators see."""

from django.urls import URLPattern, URLResolver
from unfold.sites import UnfoldAdminSite

from apps.console.playground import playground_urls


class ConsoleAdminSite(UnfoldAdminSite):
    def get_urls(self) -> list[URLPattern | URLResolver]:
        return [*playground_urls(self), *super().get_urls()]
