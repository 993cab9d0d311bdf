from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AppConfig):
    name = "apps.console"
    label = "console"
    verbose_name = "Console"

    def ready(self) -> None:
        from apps.console import pruning

        pruning.register()


class ConsoleAdminConfig(AdminConfig):
    """Django's admin with our site in its place."""

    default_site = "apps.console.sites.ConsoleAdminSite"
