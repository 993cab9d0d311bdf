"""Questions that were sent and wait for their answer."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K", str, int)
V = TypeVar("V")


class Answers(Generic[K, V]):
    """Futures by key. An answer to nothing, or to what was given up, is ignored."""

    def __init__(self) -> None:
        self._waiting: dict[K, asyncio.Future[V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._waiting

    def expect(self, key: K) -> asyncio.Future[V]:
        """Make the place for an answer, before the question is sent."""
        self._waiting[key] = asyncio.get_running_loop().create_future()
        return self._waiting[key]

    def forget(self, key: K) -> None:
        """Give up on an answer, or be done with it; idempotent."""
        self._waiting.pop(key, None)

    def give(self, key: K, value: V) -> None:
        """Answer well."""
        if (answer := self._waiting.get(key)) is not None and not answer.done():
            answer.set_result(value)

    def refuse(self, key: K, error: Exception) -> None:
        """Answer badly."""
        if (answer := self._waiting.get(key)) is not None and not answer.done():
            answer.set_exception(error)

    def refuse_all(self, make_error: Callable[[], Exception]) -> None:
        """Answer everything badly; each gets an exception of its own."""
        for key in self._waiting:
            self.refuse(key, make_error())
