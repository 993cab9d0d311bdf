"""The second wall, on PostgreSQL: the database itself keeps tenants apart, by row-level security.
At the first statement of each transaction it is told whose rows the work is about; told nothing, it
shows nothing. The roles and policies are made by ``manage.py database_roles``.

The wall stands where ``DATABASE_PLATFORM_ROLE`` names the role that sees every tenant's rows. The
role that the server connects as sees them only while it acts as that one.
"""

from collections.abc import Callable
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.backends.signals import connection_created
from psycopg.pq import TransactionStatus

from apps.core.tenancy import EVERY, Whose, whose_rows

TENANTS_SETTING: Final = "app.tenants"
# Both until the transaction ends, whichever way: a pooled connection remembers neither.
_TELL: Final = f"SELECT set_config('role', %s, true), set_config('{TENANTS_SETTING}', %s, true)"
_ATTRIBUTE: Final = "tenant_wall_told"
_UNKNOWN: Final = object()


def install() -> None:
    connection_created.connect(_on_connection, dispatch_uid="tenant_wall")


def _on_connection(connection: Any, **_: Any) -> None:
    if connection.vendor == "postgresql" and _with_wall not in connection.execute_wrappers:
        connection.execute_wrappers.append(_with_wall)


def _with_wall(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Tell whose rows a statement is about, if its transaction does not know yet."""
    connection = context["connection"]
    if not settings.DATABASE_PLATFORM_ROLE:
        return execute(sql, params, many, context)
    if connection.get_autocommit():
        if whose_rows() is None:
            return execute(sql, params, many, context)
        with transaction.atomic(using=connection.alias):
            _tell(connection)
            return execute(sql, params, many, context)
    _tell(connection)
    result = execute(sql, params, many, context)
    if isinstance(sql, str) and sql.startswith("ROLLBACK TO"):
        setattr(connection, _ATTRIBUTE, _UNKNOWN)  # what was told since is forgotten
    return result


def _tell(connection: Any) -> None:
    status = connection.connection.info.transaction_status
    if status == TransactionStatus.INERROR:
        return  # only a rollback is heard
    told: Any = getattr(connection, _ATTRIBUTE, None)
    if status == TransactionStatus.IDLE:  # the transaction begins: nobody has said anything
        told = None
    whose = whose_rows()
    if told is _UNKNOWN or told != whose:
        # Past Django's cursors: it is no statement of whoever counts or logs those.
        connection.connection.execute(_TELL, _said(whose))
    setattr(connection, _ATTRIBUTE, whose)


def _said(whose: Whose) -> tuple[str, str]:
    if whose is None:
        return "none", ""
    if whose is EVERY:
        return settings.DATABASE_PLATFORM_ROLE, ""
    assert isinstance(whose, frozenset)
    return "none", ",".join(map(str, sorted(whose)))
