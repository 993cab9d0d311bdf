"""What ``check --deploy`` says of the second wall."""

import pytest
from django.conf import settings

from apps.core.checks import tenant_wall_named

POSTGRESQL = "django.db.backends.postgresql"


@pytest.mark.parametrize(
    ("engine", "role", "ids"),
    [
        (POSTGRESQL, "", ["core.W001"]),
        (POSTGRESQL, "platform", []),
        ("django.db.backends.sqlite3", "", []),
    ],
)
def test_postgresql_without_a_platform_role_is_warned_of(
    engine: str, role: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.DATABASES, "default", {"ENGINE": engine})
    monkeypatch.setattr(settings, "DATABASE_PLATFORM_ROLE", role)
    assert [each.id for each in tenant_wall_named(None)] == ids
