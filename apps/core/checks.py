"""What Django's own ``check --deploy`` says of this room."""

from typing import Any

from django.conf import settings
from django.core import checks


def register() -> None:
    checks.register(tenant_wall_named, checks.Tags.security, deploy=True)


def tenant_wall_named(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """On PostgreSQL, the database can keep tenants apart too. That it does is the doctor's to say:
    this asks no database."""
    engine = settings.DATABASES["default"]["ENGINE"]
    if "postgresql" not in engine or settings.DATABASE_PLATFORM_ROLE:
        return []
    return [
        checks.Warning(
            "PostgreSQL does not keep tenants apart: DATABASE_PLATFORM_ROLE is not set.",
            hint="Run manage.py database_roles, and set what it says (docs/operations.md).",
            id="core.W001",
        )
    ]
