"""The roles and policies of the second wall: what they are, making them, and whether they stand.

An application role owns nothing and is no superuser; the server connects as it. It is a member of
the platform role without inheriting from it: it sees every tenant's rows only in transactions that
say so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.apps import apps
from django.db import connection, transaction

from apps.core.tenant_rows import TenantRows
from apps.core.tenant_wall import TENANTS_SETTING

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# An array made once for a query; without tenants it is NULL, which nothing equals.
TENANTS: Final = (
    f"((SELECT string_to_array(nullif(current_setting('{TENANTS_SETTING}', true), ''), ','))"
    "::bigint[])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What a connection is to PostgreSQL. unguarded: tables of tenants' rows without policies.

    is_member: may act as the platform role. sees_untold: it sees every row without saying so.
    """

    role: str
    is_superuser: bool
    is_owner: bool
    is_member: bool
    sees_untold: bool
    unguarded: tuple[str, ...]


def owned_tables() -> dict[str, str]:
    """Return the tables of tenants' rows, and on what condition a row is one of the tenants'."""
    tenant = apps.get_model("tenants", "Tenant")
    return {
        tenant._meta.db_table: f"id = ANY ({TENANTS})",
        **{
            model._meta.db_table: _condition(model)
            for model in apps.get_models()
            if issubclass(model, TenantRows) and not model._meta.proxy
        },
    }


def _condition(model: type[TenantRows]) -> str:
    """A row of a tenant's row is seen with it: that table has a policy of its own."""
    if model.owner_sql:
        return model.owner_sql.format(tenants=TENANTS)
    field: Any = model._meta.get_field(model.owner_paths[0])
    parent = field.related_model
    if isinstance(parent, type) and issubclass(parent, TenantRows):
        return f"{field.column} IN (SELECT id FROM {parent._meta.db_table})"  # noqa: S608
    return f"{field.column} = ANY ({TENANTS})"


@transaction.atomic
def roles_make(*, application: str, platform: str) -> None:
    """Make the two roles where they are missing, give them what they need, and put a policy on each
    table of tenants' rows. Again, it brings all of it up to date. Run by the tables' owner.

    Raises:
        ValueError: a name is not fit, both are one, or the application role may too much.
    """
    for name in (application, platform):
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a role: small letters, digits and _")
    if application == platform:
        raise ValueError("the two roles must be two")
    with connection.cursor() as cursor:
        for statement in _statements(cursor, application=application, platform=platform):
            cursor.execute(statement)
        cursor.execute(
            "SELECT rolsuper OR rolbypassrls OR rolinherit FROM pg_roles WHERE rolname = %s",
            [application],
        )
        if cursor.fetchone()[0]:
            raise ValueError(
                f"{application} is a superuser, bypasses row-level security or inherits: "
                f"ALTER ROLE {application} NOSUPERUSER NOBYPASSRLS NOINHERIT"
            )


def _statements(cursor: Any, *, application: str, platform: str) -> Iterator[str]:
    cursor.execute(
        "SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s)", [application, platform]
    )
    known = {name for (name,) in cursor.fetchall()}
    if application not in known:
        yield f"CREATE ROLE {application} LOGIN NOINHERIT"
    if platform not in known:
        yield f"CREATE ROLE {platform} NOLOGIN"
    yield f"GRANT {platform} TO {application}"
    cursor.execute("SELECT current_user, current_schema(), rolsuper FROM pg_roles "
                   "WHERE rolname = current_user")  # fmt: skip
    owner, schema, is_superuser = cursor.fetchone()
    if not is_superuser:  # migrations and backups see every row: FORCE binds the owner too
        yield f'GRANT {platform} TO "{owner}"'
    both, rows = f"{application}, {platform}", "SELECT, INSERT, UPDATE, DELETE"
    yield f'GRANT USAGE ON SCHEMA "{schema}" TO {both}'
    for what, of in ((rows, "TABLES"), ("USAGE, SELECT", "SEQUENCES")):
        yield f'GRANT {what} ON ALL {of} IN SCHEMA "{schema}" TO {both}'
        yield f'ALTER DEFAULT PRIVILEGES IN SCHEMA "{schema}" GRANT {what} ON {of} TO {both}'
    for table, condition in owned_tables().items():
        yield f"DROP POLICY IF EXISTS tenant_rows ON {table}"
        yield f"DROP POLICY IF EXISTS every_tenant ON {table}"
        yield f"CREATE POLICY tenant_rows ON {table} USING ({condition}) WITH CHECK ({condition})"
        yield (
            f"CREATE POLICY every_tenant ON {table} TO {platform} USING (true) WITH CHECK (true)"
        )
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"


def wall_look(*, platform: str) -> Wall:
    """Return how the wall stands for this connection. PostgreSQL only."""
    tables = sorted(owned_tables())
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname, rolsuper OR rolbypassrls, EXISTS (SELECT FROM pg_roles AS other "
            "  WHERE other.rolname = %s AND pg_has_role(session_user, other.oid, 'MEMBER')), "
            "  EXISTS (SELECT FROM pg_roles AS other "
            "  WHERE other.rolname = %s AND pg_has_role(session_user, other.oid, 'USAGE')) "
            "FROM pg_roles WHERE rolname = session_user",
            [platform, platform],
        )
        role, is_superuser, is_member, inherits = cursor.fetchone()
        cursor.execute(
            "SELECT relname, relowner = session_user::regrole, relrowsecurity "
            "  AND relforcerowsecurity AND 2 = (SELECT count(*) FROM pg_policy "
            "  WHERE polrelid = pg_class.oid AND polname IN ('tenant_rows', 'every_tenant')) "
            "FROM pg_class WHERE oid = ANY (%s::regclass[])",
            [tables],
        )
        found = cursor.fetchall()
    return Wall(
        role=role,
        is_superuser=is_superuser,
        is_owner=any(is_owner for _, is_owner, _ in found),
        is_member=is_member,
        sees_untold=is_superuser or inherits,
        unguarded=tuple(sorted(name for name, _, is_guarded in found if not is_guarded)),
    )
