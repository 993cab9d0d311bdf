"""The engine agent's loop between the database and the processes: desired state down, observed
state up. The mechanics are the engines room's; nothing here starts or kills a process itself."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.deployments.autoscaling import Pace
from apps.deployments.scaler import Scaler
from apps.deployments.services import replicas_reconcile
from apps.deployments.types import DEPLOYMENTS_STAMP, Reconciled
from apps.engines.services import (
    AgentPaths,
    EngineAgent,
    Sampler,
    Timings,
    crashes_record,
    engine_epoch_take,
    is_ready,
    journals_read,
    node_cache,
    node_record,
    node_report,
    observations_record,
    orphans_end,
    orphans_left,
    requests_running,
    stale_states_correct,
    suspects_judge,
)
from apps.engines.types import CrashSeen, EngineObservation
from apps.metering.services import orphans_close

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_SWEEP_EVERY_S = 10.0
_LOOK_EVERY_S = 10.0  # at this machine's devices
_LEAVING_EVERY_S = 1.0


class Reconciler:
    """One agent at work. While the database is away it keeps the engines that it has."""

    def __init__(self, *, paths: AgentPaths, timings: Timings, pace: Pace | None = None) -> None:
        self.agent = EngineAgent(
            paths=paths, take_epoch=_epoch_take, timings=timings, cache=node_cache()
        )
        self._paths = paths
        self._timings = timings
        self._stop = asyncio.Event()
        self._stamp: int | None = None
        self._occupied: frozenset[int] = frozenset()
        self._pending: dict[int, EngineObservation] = {}
        self._ready: dict[int, int] = {}
        self._reconciled = Reconciled(specs=(), scalable=(), leaving=frozenset(), is_short=False)
        self._reconciled_at = 0.0
        self._scaler = Scaler(pace=pace or Pace())
        self._node_id: int | None = None
        self._looked_at = -_LOOK_EVERY_S
        self._crashes: list[CrashSeen] = []
        self._swept_at = 0.0
        self._sampler = Sampler()
        self._is_database_away = False

    def stop(self) -> None:
        """Make ``run`` drain and stop every engine, then return."""
        self._stop.set()
        self.agent.changed.set()

    async def run(self) -> None:
        orphans = await self._orphans_see_off()
        while not self._stop.is_set():
            await self._tolerantly(self._turn)
            await self._wait()
        stopping = asyncio.create_task(self._end(orphans))
        while not stopping.done():
            await self._tolerantly(self._record)
            await self._wait(stopping)
        await stopping
        await self._tolerantly(self._record)
        await self._tolerantly(self._sweep)

    async def _turn(self) -> None:
        """Look at both sides once."""
        now = asyncio.get_running_loop().time()
        has_looked = now - self._looked_at >= _LOOK_EVERY_S
        if has_looked:
            self._looked_at = now
            report = await asyncio.to_thread(node_report, self._paths.kv_cache_dir)
            self._node_id = (await database_hop(node_record, report, now=timezone.now())).pk
        stamp = (await database_hop(change_stamps)).get(DEPLOYMENTS_STAMP, 0)
        if stamp != self._stamp or self._is_due(now, has_looked=has_looked):
            await self._reconcile(stamp, now=now)
        await self._record()
        self._scaler.note(self.agent.current())
        await self._scaler.scale(self._reconciled.scalable, now_s=now)
        if now - self._swept_at >= _SWEEP_EVERY_S:
            self._swept_at = now
            await self._sweep()

    def _is_due(self, now: float, *, has_looked: bool) -> bool:
        """Whether the rows may come out otherwise though nobody changed a deployment."""
        # A slot that fell empty may have a row that nothing asks for any more.
        is_emptied = bool(self._occupied - frozenset(self.agent.occupied))
        may_fit_now = self._reconciled.is_short and has_looked
        may_leave_now = (
            bool(self._reconciled.leaving) and now - self._reconciled_at >= _LEAVING_EVERY_S
        )
        return is_emptied or may_fit_now or may_leave_now

    async def _reconcile(self, stamp: int, *, now: float) -> None:
        self._reconciled = await database_hop(
            replicas_reconcile,
            occupied=frozenset(self.agent.occupied),
            node_id=self._node_id,
            idle_at=self._scaler.idle_at,
        )
        self.agent.desired_set(self._reconciled.specs, sharing=self._reconciled.sharing)
        self._stamp, self._reconciled_at = stamp, now
        self._occupied = frozenset(self.agent.occupied)

    async def _sweep(self) -> None:
        """Read what the engines recorded, then close what nobody else will."""
        now = timezone.now()
        running = await asyncio.to_thread(requests_running, self._paths.journal_dir)
        await database_hop(journals_read, self._paths.journal_dir, now=now)
        await database_hop(suspects_judge, now)
        process_ids = frozenset(self.agent.occupied)
        await database_hop(self._sampler.sample, now, process_ids=process_ids)
        if n_orphans := await database_hop(orphans_close, now, running=running):
            logger.warning("Closed %d usage records whose gateway is gone", n_orphans)

    async def _record(self) -> None:
        """Write what is new; what cannot be written now is kept and written later."""
        seen_now = self.agent.observations()
        self._pending |= {seen.process_id: seen for seen in seen_now}
        self._crashes += self.agent.crashes()
        if self._crashes:
            await database_hop(crashes_record, self._crashes)
            self._crashes.clear()
            self._swept_at = 0.0  # what its engine had not ended is wanted now
        if not self._pending:
            return
        ready = dict(self._ready)
        for seen in self._pending.values():
            ready.pop(seen.process_id, None)
            if is_ready(seen):
                ready[seen.process_id] = seen.epoch
        await database_hop(
            observations_record,
            list(self._pending.values()),
            is_routing_changed=ready != self._ready,
        )
        self._pending.clear()
        self._ready = ready

    async def _orphans_see_off(self) -> asyncio.Task[None]:
        """Begin to end what an agent that was killed left running, and correct what it wrote."""
        left = await asyncio.to_thread(orphans_left, self._paths.run_dir)
        seeing_off = asyncio.create_task(orphans_end(left, timings=self._timings))

        async def correct() -> None:
            await database_hop(stale_states_correct)

        while not await self._tolerantly(correct) and not self._stop.is_set():
            await self._wait()
        return seeing_off

    async def _end(self, orphans: asyncio.Task[None]) -> None:
        """Nothing is left running, of whichever agent it was."""
        await self.agent.stop()
        await orphans

    async def _wait(self, beside: asyncio.Task[None] | None = None) -> None:
        """Return when an engine changed, ``beside`` ended, or it is time to look again."""
        waiter = asyncio.create_task(self.agent.changed.wait())
        await asyncio.wait(
            {waiter, beside} if beside else {waiter},
            timeout=_POLL_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        waiter.cancel()

    async def _tolerantly(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do some work; False when the database is away, which is said once."""
        try:
            await work()
        except (DatabaseError, InterfaceError) as error:
            if not self._is_database_away:
                logger.error("The database is away, engines go on as they are: %s", error)
            self._is_database_away = True
            return False
        if self._is_database_away:
            logger.info("The database is back")
        self._is_database_away = False
        return True


async def _epoch_take(process_id: int) -> int:
    return await database_hop(engine_epoch_take, process_id)
