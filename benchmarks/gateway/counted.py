"""``python -m benchmarks.gateway.counted``: ``config.server``, which counts its SQL statements and,
at each SIGUSR1, writes their number to the file ``statements`` in VAR."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

from config import server

# Not statements of a request's: a transaction's frame, and what is set of a session.
_NOT_COUNTED = ("BEGIN", "COMMIT", "SET", "PRAGMA", "SAVEPOINT", "RELEASE", "SELECT set_config")


class Statements:
    def __init__(self) -> None:
        self.n = 0

    def watch(self, connection: Any, **_: object) -> None:
        if self._count not in connection.execute_wrappers:  # it may have been connected before
            connection.execute_wrappers.append(self._count)

    def _count(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        # The process polls the change stamps four times a second, whatever it is asked.
        if not str(sql).lstrip().startswith(_NOT_COUNTED) and "changestamp" not in str(sql):
            self.n += 1
        return execute(sql, params, many, context)

    def write(self, *_: object) -> None:
        draft = Path(os.environ["VAR"]) / "statements.draft"
        draft.write_text(str(self.n))
        draft.rename(draft.with_suffix(""))


if __name__ == "__main__":
    statements = Statements()
    connection_created.connect(statements.watch, weak=False)
    signal.signal(signal.SIGUSR1, statements.write)
    sys.exit(server.main())
