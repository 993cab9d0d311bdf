from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class TenantsConfig(AppConfig):
    name = "apps.tenants"
    label = "tenants"
    verbose_name = "Tenants"

    def ready(self) -> None:
        post_migrate.connect(_plans_seed, sender=self)


def _plans_seed(**_: Any) -> None:
    """Put the standard plans in place where nobody has made plans yet."""
    from apps.tenants.services import plans_seed

    plans_seed()
