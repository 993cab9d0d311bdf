"""What a soak does to the product while clients are at work, and when it did so."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import psutil

from tests.faults.soak_client import Clients
from tests.faults.stores import PostgresCluster, RedisServer
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

Kind = Literal["engine", "web", "database", "cache", "lock"]
# "lock": of SQLite, which cannot be away, another process holds the write lock. "database, web":
# the server is killed while the database is away, and with it what it had still to write.
Step = Literal[Kind, "database, web"]
BACK_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One that was made. began_s, over_s: of ``time.monotonic``; back_s: until the product was
    ready again, from the end of the fault."""

    kind: Kind
    began_s: float
    over_s: float
    back_s: float


@dataclass(slots=True)
class Faults:
    """Makes the faults of a plan one after the other, evenly over the requests that are done."""

    product: RunningProduct
    clients: Clients
    away_s: float = 10.0
    postgres: PostgresCluster | None = None
    redis: RedisServer | None = None
    while_away: Callable[[Kind], None] = lambda kind: None
    made: list[Fault] = field(default_factory=list)

    async def run(self, plan: Sequence[Step]) -> None:
        for index, step in enumerate(plan, start=1):
            due = index * self.clients.n_requests // (len(plan) + 1)
            await wait_until_async(
                f"{due} requests to be done",
                lambda due=due: self.clients.n_done >= due,
                timeout_s=900,
            )
            await self._make(step)

    async def _make(self, step: Step) -> None:
        began_s = time.monotonic()
        is_back = await asyncio.to_thread(self._done, step)
        over_s = time.monotonic()
        await wait_until_async(
            f"the product to be ready again after {step}",
            lambda: asyncio.to_thread(is_back),
            timeout_s=BACK_S,
        )
        back_s = time.monotonic() - over_s
        kinds: tuple[Kind, ...] = ("database", "web") if step == "database, web" else (step,)
        for kind in kinds:
            self.made.append(Fault(kind=kind, began_s=began_s, over_s=over_s, back_s=back_s))

    def _done(self, step: Step) -> Callable[[], bool]:
        """Make a fault; return what says whether the product is over it."""
        match step:
            case "engine":
                return self._engine_kill()
            case "web":
                return self._web_kill()
            case "lock":
                return self._lock_hold()
            case "database":
                return self._store_stop(step, self.postgres)
            case "cache":
                return self._store_stop(step, self.redis)
            case "database, web":
                return self._store_stop("database", self.postgres, meanwhile=self._web_kill)

    def _engine_kill(self) -> Callable[[], bool]:
        before = self.product.engine()
        assert before.state == "ready", before
        os.kill(before.pid, signal.SIGKILL)
        return lambda: self.product.engine().epoch > before.epoch and self.product.is_ready()

    def _web_kill(self) -> Callable[[], bool]:
        before = self.product.web_pid()
        os.kill(before, signal.SIGKILL)
        return partial(self._has_other_web, before)

    def _has_other_web(self, before: int) -> bool:
        try:
            return self.product.web_pid() != before and self.product.is_ready()
        except (StopIteration, psutil.Error):  # not started yet, or just gone
            return False

    def _lock_hold(self) -> Callable[[], bool]:
        with contextlib.closing(sqlite3.connect(self.product.var / "db.sqlite3")) as database:
            database.isolation_level = None
            database.execute("BEGIN IMMEDIATE")
            time.sleep(self.away_s)  # how long it is held
            database.execute("ROLLBACK")
        return self.product.is_ready

    def _store_stop(
        self,
        kind: Kind,
        store: PostgresCluster | RedisServer | None,
        *,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Callable[[], bool]:
        assert store is not None
        if isinstance(store, PostgresCluster):
            store.stop("fast" if self.count("database") % 2 == 0 else "immediate")
        else:
            store.stop()
        began_s = time.monotonic()
        self.while_away(kind)
        meanwhile()
        time.sleep(max(0.0, self.away_s - (time.monotonic() - began_s)))  # how long it is away
        store.start()
        return self.product.is_ready

    def count(self, kind: Kind) -> int:
        return sum(fault.kind == kind for fault in self.made)
