"""A set of supervised engine processes that follows a desired set. It knows no database: what to
run is handed down, what was seen is taken from it."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from apps.engines.node_cache import NodeCache
from apps.engines.paths import AgentPaths
from apps.engines.policy import State, Timings
from apps.engines.remote.watch import RemoteWatch
from apps.engines.supervisor import Supervisor
from apps.engines.turns import Turns
from apps.engines.types import CrashSeen, EngineObservation, EngineSpec, Sharing, TakeEpoch

logger = logging.getLogger(__name__)

_NEWS_EVERY_S: Final = 2.0


class EngineAgent:
    """At most one process per slot at any moment: a slot whose spec changed is stopped first.

    changed: set whenever ``observations`` has a change of state to tell. cache: for specs with
    artifacts.
    """

    def __init__(
        self,
        *,
        paths: AgentPaths,
        take_epoch: TakeEpoch,
        timings: Timings,
        cache: NodeCache | None = None,
    ) -> None:
        self.changed = asyncio.Event()
        self._paths = paths
        self._take_epoch = take_epoch
        self._timings = timings
        self._cache = cache
        self._desired: dict[int, EngineSpec] = {}
        self._sharing = Sharing()
        self._turns = Turns(turn_s=timings.turn_s)
        self._supervisors: dict[int, Supervisor | RemoteWatch] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._last_words: list[EngineObservation] = []
        self._crashes: list[CrashSeen] = []
        self._told_at: dict[int, float] = {}

    @property
    def occupied(self) -> Collection[int]:
        """Slots that have, or soon will have, a process."""
        return self._supervisors.keys() | self._desired.keys()

    def desired_set(self, specs: Iterable[EngineSpec], *, sharing: Sharing | None = None) -> None:
        """Take a new desired set: start, stop and replace processes until it is met. sharing: who
        of them share devices; None: nobody does."""
        self._desired = {spec.process_id: spec for spec in specs}
        self._sharing = sharing or Sharing()
        self._turns.share(
            self._sharing,
            going_on=[
                process_id
                for process_id, supervisor in self._supervisors.items()
                if self._desired.get(process_id) == supervisor.spec
            ],
        )
        self._reconcile()

    def observations(self) -> Sequence[EngineObservation]:
        """Take what is new since the last call; mere news of an unchanged state come throttled."""
        now = asyncio.get_running_loop().time()
        self.changed.clear()
        found, self._last_words = self._last_words, []
        for process_id, supervisor in self._supervisors.items():
            is_due = now - self._told_at.get(process_id, 0.0) >= _NEWS_EVERY_S
            if supervisor.is_changed or (supervisor.has_news and is_due):
                supervisor.is_changed = supervisor.has_news = False
                self._told_at[process_id] = now
                found.append(supervisor.observation())
        return found

    def current(self) -> Sequence[EngineObservation]:
        """Return what each slot would say now, whether it was told before or not."""
        return [supervisor.observation() for supervisor in self._supervisors.values()]

    def crashes(self) -> Sequence[CrashSeen]:
        """Take the crashes since the last call."""
        for supervisor in self._supervisors.values():
            self._crashes_take(supervisor)
        found, self._crashes = self._crashes, []
        return found

    async def stop(self) -> None:
        """Drain and stop every process; returns when none is left."""
        self.desired_set(())
        while self._tasks:
            await asyncio.wait(self._tasks.values())
            await asyncio.sleep(0)  # let the tasks' callbacks take them off the list

    def kill(self) -> None:
        """End every process at once."""
        for supervisor in self._supervisors.values():
            supervisor.kill()

    def _reconcile(self) -> None:
        for process_id, supervisor in self._supervisors.items():
            if self._desired.get(process_id) != supervisor.spec:
                supervisor.stop()
        for process_id, spec in self._desired.items():
            if process_id not in self._supervisors:
                self._start(spec)

    def _start(self, spec: EngineSpec) -> None:
        supervisor = self._supervisor(spec)
        self._supervisors[spec.process_id] = supervisor
        task = asyncio.get_running_loop().create_task(supervisor.run())
        self._tasks[spec.process_id] = task
        task.add_done_callback(lambda _: self._ended(spec.process_id))

    def _supervisor(self, spec: EngineSpec) -> Supervisor | RemoteWatch:
        if spec.remote is not None:
            return RemoteWatch(
                spec,
                spec.remote,
                take_epoch=self._take_epoch,
                on_change=self.changed.set,
                timings=self._timings,
            )
        turn = self._turns.begin(
            spec.process_id,
            share=self._sharing.shares.get(spec.process_id),
            changed=lambda: supervisor.turn_changed(),
        )
        supervisor = Supervisor(
            spec,
            paths=self._paths,
            take_epoch=self._take_epoch,
            on_change=self.changed.set,
            timings=self._timings,
            turn=turn,
            cache=self._cache,
        )
        return supervisor

    def _crashes_take(self, supervisor: Supervisor | RemoteWatch) -> None:
        if isinstance(supervisor, Supervisor):
            self._crashes += supervisor.crashes
            supervisor.crashes.clear()

    def _ended(self, process_id: int) -> None:
        task = self._tasks.pop(process_id)
        supervisor = self._supervisors.pop(process_id)
        self._crashes_take(supervisor)
        self._turns.end(process_id)
        self._last_words.append(supervisor.observation())
        self._told_at.pop(process_id, None)
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The supervisor of slot %d failed", process_id, exc_info=error)
            task.get_loop().call_later(self._timings.backoff_most_s, self._reconcile)
        else:
            self._reconcile()


def is_ready(observation: EngineObservation) -> bool:
    return observation.state == State.READY
