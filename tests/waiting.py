"""Waiting in tests: poll with a deadline, and say what was waited for. Nothing sleeps blindly."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_until(what: str, check: Callable[[], _T], *, timeout_s: float = 10.0) -> _T:
    """Return the first truthy answer of ``check``."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what}; last answer: {answer!r}")
        time.sleep(0.02)


async def wait_until_async(
    what: str, check: Callable[[], _T | Awaitable[_T]], *, timeout_s: float = 10.0
) -> _T:
    """As ``wait_until``, leaving the event loop free; ``check`` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = check()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what}; last answer: {answer!r}")
        await asyncio.sleep(0.02)
