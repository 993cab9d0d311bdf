"""Children that are started again when they end, with real processes."""

import asyncio
import sys
from asyncio.subprocess import Process

from apps.console.keeper import Keeper
from tests.waiting import wait_until_async


class Spawner:
    def __init__(self, code: str) -> None:
        self.children: list[Process] = []
        self._code = code

    async def __call__(self) -> Process:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", self._code)
        self.children.append(child)
        return child

    async def end(self) -> None:
        for child in self.children:
            if child.returncode is None:
                child.kill()
            await child.wait()


async def test_a_killed_child_is_started_again_until_it_is_let_go() -> None:
    said: list[str] = []
    spawner = Spawner("import time; time.sleep(60)")
    keeper = Keeper("helper", spawn=spawner, report=said.append, first_pause_s=0.01)
    try:
        await keeper.start()
        keeper.keep()
        for n_children in (2, 3):
            assert keeper.child is not None
            keeper.child.kill()
            await wait_until_async("another child", lambda n=n_children: len(spawner.children) == n)
            await wait_until_async("it to be known", lambda: keeper.child is spawner.children[-1])
        assert said == ["The helper ended by itself (signal 9) and is started again"] * 2
        last = await keeper.let_go()
        assert last is spawner.children[-1]
        assert last.returncode is None
        last.kill()
        await last.wait()
        assert len(spawner.children) == 3
    finally:
        await spawner.end()


async def test_one_that_ends_at_once_is_started_ever_more_slowly() -> None:
    said: list[str] = []
    spawner = Spawner("raise SystemExit(3)")
    loop = asyncio.get_running_loop()
    keeper = Keeper("helper", spawn=spawner, report=said.append, first_pause_s=0.1)
    started_s = loop.time()
    try:
        await keeper.start()
        keeper.keep()
        await wait_until_async("four children", lambda: len(spawner.children) == 4)
        assert loop.time() - started_s >= 0.1 + 0.2 + 0.4
        assert said[0] == "The helper ended by itself (status 3) and is started again"
    finally:
        await keeper.let_go()
        await spawner.end()
