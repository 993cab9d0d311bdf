"""The one way from the event loop to the ORM: a whole service or selector on a sized pool."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import close_old_connections

_P = ParamSpec("_P")
_R = TypeVar("_R")

_executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


async def database_hop(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run ``function`` on a database thread. Stale connections are closed before it, and those that
    may not be kept (pooled ones) go back after it."""

    def whole() -> _R:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return await sync_to_async(whole, thread_sensitive=False, executor=_executor)()
