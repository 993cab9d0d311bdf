"""Work for many at once: alone nobody waits, and nobody gets what is another's."""

import asyncio
from collections.abc import Sequence

from apps.core.gathering import Gathering


class Workshop:
    """Answers twice a number, and refuses odd ones; a group waits until it is let go."""

    def __init__(self, *, at_most: int = 10) -> None:
        self.groups: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.gathering: Gathering[int, int] = Gathering(
            self._work, at_most=at_most, spawn=self._spawn
        )

    def _spawn(self, work: object) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self.tasks.add(task)
        return task  # type: ignore[no-any-return]

    async def _work(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.groups.append(list(items))
        await self.go_on.wait()
        if 0 in items:
            raise ZeroDivisionError
        return [ValueError(item) if item % 2 else 2 * item for item in items]


async def test_who_comes_meanwhile_is_the_next_group() -> None:
    shop = Workshop(at_most=3)
    first = shop.gathering.ask(2)
    await asyncio.sleep(0)
    assert shop.groups == [[2]]  # at once, and without waiting for others
    others = [shop.gathering.ask(2 * n) for n in range(2, 7)]
    shop.go_on.set()
    assert await asyncio.gather(first, *others) == [4, 8, 12, 16, 20, 24]
    assert shop.groups == [[2], [4, 6, 8], [10, 12]]


async def test_each_has_its_own_answer_or_error() -> None:
    shop = Workshop()
    shop.go_on.set()
    answers = await asyncio.gather(
        *(shop.gathering.ask(n) for n in (4, 3, 8)), return_exceptions=True
    )
    assert (answers[0], answers[2]) == (8, 16)
    assert isinstance(answers[1], ValueError) and answers[1].args == (3,)


async def test_work_that_fails_fails_for_its_group_only() -> None:
    shop = Workshop(at_most=2)
    asked = [shop.gathering.ask(n) for n in (0, 2, 4)]
    shop.go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ZeroDivisionError, ZeroDivisionError, int]
    assert await shop.gathering.ask(6) == 12


async def test_who_is_cancelled_ends_nobody_elses_work() -> None:
    shop = Workshop()
    asked = [shop.gathering.ask(n) for n in (2, 4)]
    await asyncio.sleep(0)
    asked[0].cancel()
    shop.go_on.set()
    assert await asked[1] == 8
    assert shop.groups == [[2, 4]]


async def test_a_worker_that_is_cancelled_leaves_nobody_waiting() -> None:
    shop = Workshop(at_most=1)
    asked = [shop.gathering.ask(n) for n in (2, 4)]
    await asyncio.sleep(0)
    (task,) = shop.tasks
    task.cancel()
    await asyncio.wait({task})
    assert all(answer.cancelled() for answer in asked)
    shop.go_on.set()
    assert await shop.gathering.ask(6) == 12
