"""Empties the database after a test that commits. Django's own way truncates every table and then
makes content types, permissions and seeds anew, which took most of the time of tests that leave a
few rows; here rows are deleted, and what `migrate` has put in place stays."""

from functools import lru_cache
from typing import Any, Final

from django.db import connections, transaction
from django.test import TransactionTestCase

from apps.core.tenancy import every_tenant
from apps.metering.models import Meter
from apps.rbac.models import Role
from apps.tenants.services import plans_seed

_ROLES: Final = Role._meta.db_table
_ROLE_PERMISSIONS: Final = Role.permissions.through._meta.db_table
_OWN_ROLES: Final = f"SELECT id FROM {_ROLES} WHERE NOT is_builtin"
# Statements for the tables that `migrate` fills: what tests add to them goes, the rest stays.
_KEPT: Final = {
    "django_migrations": None,
    "django_content_type": None,
    "auth_permission": None,
    _ROLE_PERMISSIONS: f"DELETE FROM {_ROLE_PERMISSIONS} WHERE role_id IN ({_OWN_ROLES})",
    _ROLES: f"DELETE FROM {_ROLES} WHERE NOT is_builtin",
    # A server that still reserves and settles locks meters after its row, by their ids.
    Meter._meta.db_table: (
        f"DELETE FROM {Meter._meta.db_table} WHERE id IN "
        f"(SELECT id FROM {Meter._meta.db_table} ORDER BY id {{for_update}})"
    ),
}


def fixture_teardown(self: TransactionTestCase) -> None:
    """Stands in for Django's."""
    for alias in self._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        empty(connections[alias])


def empty(connection: Any) -> None:
    """Delete what tests left. Foreign keys are checked at the end of the transaction, so that the
    order of tables does not matter."""
    with (
        every_tenant("everybody's rows go"),
        transaction.atomic(using=connection.alias),
        connection.cursor() as cursor,
    ):
        for statement in _statements(connection.vendor, tuple(_tables(connection.alias))):
            cursor.execute(statement)
        plans_seed()


@lru_cache
def _tables(alias: str) -> tuple[str, ...]:
    return tuple(connections[alias].introspection.django_table_names(only_existing=True))


@lru_cache
def _statements(vendor: str, tables: tuple[str, ...]) -> tuple[str, ...]:
    is_server = vendor == "postgresql"
    for_update = "FOR UPDATE" if is_server else ""
    plain = [f'DELETE FROM "{table}"' for table in tables if table not in _KEPT]
    kept = [each.format(for_update=for_update) for each in _KEPT.values() if each is not None]
    # In one message: eighty answers to wait for take longer than what they tell of.
    return ("; ".join((*plain, *kept)),) if is_server else (*plain, *kept)
