"""The one way from the event loop to the ORM: a whole service or selector on a sized pool."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import OperationalError, close_old_connections
from psycopg_pool import PoolTimeout

from apps.core.exceptions import Unavailable

_P = ParamSpec("_P")
_R = TypeVar("_R")

_LOOK_EVERY_S: Final = 1.0

_executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


class DatabaseAway(Unavailable, OperationalError):
    """No connection can be had: what callers of the ORM expect, and an answer for a client."""

    default_message = "The database cannot be reached at the moment."


class Outage:
    """Once a wait for a connection was in vain, others are refused at once instead of queueing for
    threads that wait. One in ``look_every_s`` goes through, to see whether the database is back."""

    def __init__(
        self,
        *,
        look_every_s: float = _LOOK_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_every_s = look_every_s
        self._clock = clock
        self._look_at_s: float | None = None

    def run(self, function: Callable[[], _R]) -> _R:
        """Call ``function``, which asks the database; raises DatabaseAway when it cannot."""
        if self._look_at_s is not None:
            if self._clock() < self._look_at_s:
                raise DatabaseAway
            self._look_at_s = self._clock() + self._look_every_s
        try:
            result = function()
        except Exception as error:
            if not _is_out_of_connections(error):
                raise
            self._look_at_s = self._clock() + self._look_every_s
            raise DatabaseAway from error
        self._look_at_s = None
        return result


def _is_out_of_connections(error: BaseException | None) -> bool:
    """Whether the pool gave up waiting, however the error was dressed on its way."""
    while error is not None:
        if isinstance(error, PoolTimeout):
            return True
        error = error.__cause__
    return False


_outage = Outage()


async def database_hop(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run ``function`` on a database thread. Stale connections are closed before it, and those that
    may not be kept (pooled ones) go back after it.

    Raises:
        DatabaseAway: no connection can be had; and whatever ``function`` raises.
    """

    def whole() -> _R:
        close_old_connections()
        try:
            return _outage.run(lambda: function(*args, **kwargs))
        finally:
            close_old_connections()

    return await sync_to_async(whole, thread_sensitive=False, executor=_executor)()
