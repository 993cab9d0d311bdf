"""The second wall around the test database: as the application role, when pytest is told so."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.conf import settings
from django.db import connection, connections

from apps.core.database_roles import roles_make

APPLICATION: Final = "nano_llm_test_application"
PLATFORM: Final = "nano_llm_test_platform"
_PASSWORD: Final = "only-for-tests"


@contextmanager
def walled() -> Iterator[None]:
    """Connect as the application role from here on."""
    roles_make(application=APPLICATION, platform=PLATFORM)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE {APPLICATION} PASSWORD '{_PASSWORD}'")
    place: dict[str, Any] = connections["default"].settings_dict
    before = {name: place[name] for name in ("USER", "PASSWORD")}
    _connect_as({"USER": APPLICATION, "PASSWORD": _PASSWORD}, platform=PLATFORM)
    try:
        yield
    finally:
        _connect_as(before, platform="")


def _connect_as(who: dict[str, str], *, platform: str) -> None:
    connection.close()
    connection.close_pool()
    connection.settings_dict.update(who)
    settings.DATABASE_PLATFORM_ROLE = platform
    os.environ["DATABASE_PLATFORM_ROLE"] = platform  # for servers that tests start
