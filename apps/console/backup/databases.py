"""A database as one file, and back: SQLite by its own online backup, PostgreSQL by its own
programs."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import psycopg
from django.conf import settings
from psycopg.conninfo import make_conninfo

from apps.console.backup.archive import BackupError

Vendor = Literal["sqlite", "postgresql"]
Database = Mapping[str, Any]

MEMBERS: Final[dict[Vendor, str]] = {
    "sqlite": "database/db.sqlite3",
    "postgresql": "database/postgresql.dump",
}
_LOCK_WAIT_S: Final = 10
_COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


def vendor_of(database: Database) -> Vendor:
    return "sqlite" if str(database["ENGINE"]).endswith("sqlite3") else "postgresql"


def database_dump(database: Database, target: Path) -> None:
    """Write all of it as of one moment, while others go on writing.

    Raises:
        BackupError: it cannot be read whole.
    """
    if vendor_of(database) == "sqlite":
        _sqlite_dump(Path(database["NAME"]), target)
        return
    options = ["--format=custom", "--compress=0", "--no-owner", "--no-privileges"]
    if settings.DATABASE_PLATFORM_ROLE:
        # Whoever may not see every row is refused by pg_dump, unless told that some will do.
        options += [f"--role={settings.DATABASE_PLATFORM_ROLE}", "--enable-row-security"]
    _run("pg_dump", [*options, f"--file={target}"], database=database)


def is_database_empty(database: Database) -> bool:
    if vendor_of(database) == "sqlite":
        file = Path(database["NAME"])
        return not file.exists() or file.stat().st_size == 0
    with _connected(database) as connection:
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
        row = connection.execute(query).fetchone()
    return row is not None and row[0] == 0


def database_check_idle(database: Database) -> None:
    """Raises BackupError while anyone else is connected: what they go on writing would be lost."""
    if vendor_of(database) == "sqlite":
        file = Path(database["NAME"])
        if not is_database_empty(database):
            _sqlite_check_idle(file)
        return
    with _connected(database) as connection:
        rows = connection.execute(
            "SELECT pid, application_name FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid"
        ).fetchall()
    if rows:
        who = ", ".join(f"{name or 'unnamed'} (pid {pid} there)" for pid, name in rows[:5])
        raise BackupError(
            f"{len(rows)} others are connected to the database: {who}. Stop every server, worker "
            "and shell that uses it first"
        )


def dump_check(vendor: Vendor, dump: Path) -> None:
    """Raises BackupError unless the dump is one that can be put in place."""
    if vendor == "sqlite":
        _sqlite_check_whole(dump)
    else:
        _output("pg_restore", ["--list", str(dump)])


def postgresql_load(database: Database, dump: Path) -> None:
    """Replace what the dump holds, in one transaction.

    Raises:
        BackupError: it cannot be; then nothing has changed.
    """
    options = ["--clean", "--if-exists", "--single-transaction", "--exit-on-error"]
    _run(
        "pg_restore",
        [*options, "--no-owner", "--no-privileges", str(dump)],
        database=database,
        server_settings=f"-c lock_timeout={_LOCK_WAIT_S}s",
    )


def sqlite_files(database: Database) -> list[Path]:
    """Return the files that a SQLite database consists of at the moment."""
    name = str(database["NAME"])
    files = (Path(name + companion) for companion in _COMPANIONS)
    return [file for file in files if file.exists()]


# -- SQLite ------------------------------------------------------------------------------------


def _sqlite_dump(file: Path, target: Path) -> None:
    """In one step, under a reader's lock: in parts, each write of others would begin it anew."""
    target.touch(mode=0o600)
    try:
        with (
            contextlib.closing(_sqlite(file)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without companions
    except sqlite3.Error as error:
        raise BackupError(f"the database {file} cannot be read: {error}") from error
    _sqlite_check_whole(target)


def _sqlite_check_whole(file: Path) -> None:
    try:
        with contextlib.closing(_sqlite(file)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise BackupError(f"the copy of the database is damaged: {found}")


def _sqlite_check_idle(file: Path) -> None:
    """Leaving WAL needs the database to oneself, and changes nothing else of it."""
    try:
        with contextlib.closing(_sqlite(file, timeout_s=1)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise BackupError(
                f"another process has {file} open: stop every server, worker and shell that uses it"
            ) from error
    except sqlite3.DatabaseError:
        return  # damaged: all the more reason to put another in its place


def _sqlite(file: Path, *, timeout_s: float = 20) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=timeout_s)


# -- PostgreSQL --------------------------------------------------------------------------------


def _connected(database: Database) -> "psycopg.Connection[tuple[Any, ...]]":
    try:
        return psycopg.connect(address(database), password=database["PASSWORD"] or None)
    except psycopg.Error as error:
        raise BackupError(f"the database cannot be reached: {error}") from error


def address(database: Database) -> str:
    """Return how to connect, all but the password: others see a program's arguments."""
    options = {key: value for key, value in database["OPTIONS"].items() if key != "pool"}
    places = {"dbname": "NAME", "user": "USER", "host": "HOST", "port": "PORT"}
    given = {key: database[name] for key, name in places.items() if database[name]}
    return make_conninfo(**given, **options)


def _run(
    program: str, arguments: list[str], *, database: Database, server_settings: str = ""
) -> None:
    environment = {"PGPASSWORD": str(database["PASSWORD"])} if database["PASSWORD"] else {}
    if server_settings:
        environment["PGOPTIONS"] = server_settings
    _output(program, [f"--dbname={address(database)}", *arguments], environment=environment)


def _output(
    program: str, arguments: list[str], *, environment: Mapping[str, str] | None = None
) -> None:
    path = shutil.which(program)
    if path is None:
        raise BackupError(
            f"{program} is not on PATH: install PostgreSQL's client programs, of the server's "
            "version or a newer one (on Debian: postgresql-client)"
        )
    done = subprocess.run(
        [path, *arguments],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BackupError(f"{program} failed: {' '.join(said[-3:])}")
