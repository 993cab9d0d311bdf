"""The database: whether it answers, is of this version's shape, and holds nothing that was left
behind."""

import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg
from django.conf import settings
from django.db import OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from apps.console.backup.databases import address
from apps.console.doctor.findings import Finding, failure, ok, warning
from apps.core.database_roles import wall_look
from apps.metering.selectors import overdue_reservations

# What Django 5.2 supports.
_POSTGRESQL_LEAST: Final = 140_000
# The agent closes them every ten seconds.
_OVERDUE_GRACE: Final = timedelta(minutes=1)
_WALL_REMEDY: Final = (
    "run `manage.py database_roles` as the tables' owner, and set what it says: "
    "docs/operations.md, Tenants apart in PostgreSQL"
)


def absent_file() -> Path | None:
    """Return the file of a SQLite database that was never made: to ask it would make it."""
    if connection.vendor != "sqlite":
        return None
    file = Path(connection.settings_dict["NAME"])
    return None if file.exists() else file


def look_at_database() -> Iterator[Finding]:
    _reached()
    asked_s = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()
        took_ms = (time.monotonic() - asked_s) * 1000
        yield ok("database", f"{connection.vendor} answers, in {took_ms:.0f} ms")
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA journal_mode")
            mode = cursor.fetchone()[0]
            yield _sqlite(str(mode))
        else:
            cursor.execute(
                "SELECT current_setting('server_version_num')::int, "
                "current_setting('server_version'), pg_database_size(current_database())"
            )
            yield _postgresql(*cursor.fetchone())


def _reached() -> None:
    """Raise what a connection of its own says: the pool only says that it has none."""
    if connection.vendor == "postgresql":
        try:
            psycopg.connect(
                address(connection.settings_dict), password=connection.settings_dict["PASSWORD"]
            ).close()
        except psycopg.Error as error:
            raise OperationalError(str(error)) from error


def _sqlite(mode: str) -> Finding:
    seen = f"SQLite {sqlite3.sqlite_version}, journal mode {mode}"
    if mode == "wal":
        return ok("database engine", seen)
    return failure(
        "database engine",
        seen,
        "without WAL readers wait for writers: put the file on a local disk (no network file "
        "system), and let the server open it once",
    )


def _postgresql(number: int, version: str, size_bytes: int) -> Finding:
    seen = f"PostgreSQL {version}, {size_bytes / 1e6:.0f} MB"
    if number >= _POSTGRESQL_LEAST:
        return ok("database engine", seen)
    return failure("database engine", seen, "upgrade the server to PostgreSQL 14 or newer")


def look_at_migrations() -> Iterator[Finding]:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        names = ", ".join(f"{each.app_label}.{each.name}" for each, _ in plan[:3])
        yield failure(
            "migrations",
            f"{len(plan)} not applied: {names}{', …' if len(plan) > 3 else ''}",
            "stop the server, then run `manage.py migrate`; `make serve` does it at its start",
        )
    unknown = sorted(set(executor.loader.applied_migrations) - set(executor.loader.disk_migrations))
    if unknown:
        app, name = unknown[0]
        yield warning(
            "migrations",
            f"the database has {len(unknown)} that this version does not know, such as "
            f"{app}.{name}",
            "run the version that made them, or restore a backup that fits this one",
        )
    if not plan and not unknown:
        yield ok("migrations", f"all {len(executor.loader.applied_migrations)} applied")


def look_at_tenant_wall() -> Iterator[Finding]:
    """PostgreSQL keeps tenants apart for a role that neither owns the tables nor is a superuser."""
    if connection.vendor != "postgresql":
        return
    name, platform = "tenants apart", settings.DATABASE_PLATFORM_ROLE
    wall = wall_look(platform=platform)
    sees_all = wall.is_owner or wall.sees_untold
    if not platform and not sees_all and not wall.unguarded:
        yield failure(
            name,
            f"{wall.role} sees no tenant's rows: DATABASE_PLATFORM_ROLE is not set",
            "set it as `manage.py database_roles` said",
        )
    elif not platform:
        yield warning(name, f"PostgreSQL shows {wall.role} every tenant's rows", _WALL_REMEDY)
    elif sees_all:
        yield warning(
            name,
            f"{wall.role} is a superuser, owns the tables or inherits {platform}: it sees every "
            "tenant's rows",
            f"let DATABASE_URL name an application role. {_WALL_REMEDY}",
        )
    elif not wall.is_member:
        yield failure(
            name,
            f"{wall.role} cannot act as {platform}, and sees no tenant's rows",
            _WALL_REMEDY,
        )
    elif wall.unguarded:
        yield failure(
            name,
            f"{len(wall.unguarded)} tables have no policies, such as {wall.unguarded[0]}",
            _WALL_REMEDY,
        )
    else:
        yield ok(name, f"PostgreSQL shows {wall.role} the rows of the tenants that it names")


def look_at_reservations() -> Iterator[Finding]:
    now = timezone.now()
    n, first = overdue_reservations(now)
    if first is None or now - first < _OVERDUE_GRACE:
        yield ok("reservations", "none is open past its life")
        return
    yield warning(
        "reservations",
        f"{n} are open past their life, the first for {_span(now - first)}: their tokens are held",
        "start the engine agent (`make serve`, or `manage.py run_engines`), which closes them "
        "within ten seconds; if it runs, its log says why not",
    )


def _span(time_gone: timedelta) -> str:
    return str(timedelta(seconds=int(time_gone.total_seconds())))
