"""What lies where, and what a database holds, to compare before and after."""

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from apps.console.backup.databases import address
from apps.console.backup.installation import Installation

Rows = dict[str, list[str]]


def file_write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` but locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not path.name.startswith("db.sqlite3")
    }


def rows(database: Mapping[str, Any]) -> Rows:
    """Every row of every table, as text."""
    if str(database["ENGINE"]).endswith("sqlite3"):
        if not Path(database["NAME"]).exists():
            return {}
        with contextlib.closing(sqlite3.connect(database["NAME"])) as found:
            query = (
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
            return {
                name: sorted(map(repr, found.execute(f"SELECT * FROM {name}")))
                for (name,) in found.execute(query).fetchall()
            }
    with psycopg.connect(address(database)) as server:
        names = server.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        ).fetchall()
        return {
            name: sorted(map(repr, server.execute(f"SELECT * FROM {name}").fetchall()))  # type: ignore[call-overload]
            for (name,) in names
        }


def state(installation: Installation) -> tuple[dict[str, bytes], Rows]:
    return tree(installation.var_dir), rows(installation.database)
