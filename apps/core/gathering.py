"""Work that costs as much for many as for one, done for all who wait for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Gathering(Generic[T, R]):
    """Of one event loop. One group at a time is worked on, made of all that came while the one
    before it was: alone, nobody waits for others to come.

    work: answers a group, to each its own; an exception among the answers is raised where it was
    asked for, and one that ``work`` raises everywhere in the group. at_most: in a group. spawn:
    runs the work, which goes on when who asked is cancelled.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        at_most: int,
        spawn: Spawn,
    ) -> None:
        self._work = work
        self._at_most = at_most
        self._spawn = spawn
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._is_working = False

    def ask(self, item: T) -> "asyncio.Future[R]":
        """Return what will be what ``work`` answers to ``item``. Awaiting it may be cancelled; the
        work is done all the same."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if not self._is_working:
            self._is_working = True
            self._spawn(self._run())
        return answer

    async def _run(self) -> None:
        group: list[tuple[T, asyncio.Future[R]]] = []
        try:
            while self._waiting:
                n = min(self._at_most, len(self._waiting))
                group = [self._waiting.popleft() for _ in range(n)]
                await self._answer(group)
        finally:
            self._is_working = False
            for _, answer in (*group, *self._waiting):  # of one that was cancelled itself
                answer.cancel()
            self._waiting.clear()

    async def _answer(self, group: Sequence[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            answers = await self._work([item for item, _ in group])
        except Exception as error:  # noqa: BLE001 - it is theirs who asked
            answers = [error] * len(group)
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():  # who asked was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
