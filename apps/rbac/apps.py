from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class RbacConfig(AppConfig):
    name = "apps.rbac"
    label = "rbac"
    verbose_name = "Access"

    def ready(self) -> None:
        from apps.rbac import pruning

        pruning.register()
        # After the last app that has models: before, not every permission is there.
        with_models = [each for each in apps.get_app_configs() if each.models_module is not None]
        post_migrate.connect(_roles_seed, sender=with_models[-1])


def _roles_seed(**_: Any) -> None:
    """Put the roles that come with the platform in place."""
    from apps.rbac.services import roles_seed

    roles_seed()
