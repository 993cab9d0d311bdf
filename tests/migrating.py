"""The database as an earlier release had it, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection
from django.db.migrations.executor import MigrationExecutor

Targets = list[tuple[str, str]]


def migrate(to: Targets) -> Any:
    """Bring the schema there; return the models as of then."""
    MigrationExecutor(connection).migrate(to)
    return MigrationExecutor(connection).loader.project_state(to).apps


@contextmanager
def migrated_back(to: Targets) -> Iterator[Any]:
    """Take the schema back, and with it every room that needs what came later; yield the models as
    of then. All of it comes again at the end."""
    try:
        yield migrate(to)
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes())
