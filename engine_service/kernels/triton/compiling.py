"""Has Triton compile what would be launched, and launch nothing."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

_RUN: Final = JITFunction.run
_MAX_THREADS: Final = 16
# Takes a kernel's name and what runs it, and returns what that returned.
Around = Callable[[str, Callable[[], Any]], Any]


@contextmanager
def launching_nothing(around: Around | None = None) -> Iterator[None]:
    """Compile only, in the whole process, meanwhile."""

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup

        def compiled() -> Any:
            return _RUN(function, *args, grid=grid, warmup=True, **options)

        return compiled() if around is None else around(function.fn.__name__, compiled)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = _RUN


@contextmanager
def compiling_in_threads() -> Iterator[None]:
    """Do not wait for a kernel that is not launched: as many are compiled at once as there are
    cores. Leaving waits for all. What cannot be compiled fails where it is launched."""
    n_threads = min(os.cpu_count() or 1, _MAX_THREADS)
    with (
        ThreadPoolExecutor(n_threads, thread_name_prefix="compile") as pool,
        AsyncCompileMode(pool, ignore_errors=True),
    ):
        yield
