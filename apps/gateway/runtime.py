"""What one gateway process holds in memory: tokens, routes, engine connections, live requests.
Made on the first request and bound to the event loop that serves it."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.core.stamps import StampWatcher
from apps.engines.exceptions import EngineClientError
from apps.engines.types import QUARANTINE_STAMP
from apps.experiments.selectors import ExperimentSnapshot
from apps.experiments.selectors import snapshot as experiments_snapshot
from apps.experiments.types import EXPERIMENTS_STAMP
from apps.gateway.engines import EnginePool
from apps.gateway.exceptions import Draining
from apps.gateway.idempotency import KeptAnswer, NamedRequest
from apps.gateway.ledger_writer import LedgerWriter
from apps.gateway.limits import Admitted, LimitCheck
from apps.gateway.quarantine import QuarantineWatch
from apps.gateway.refusals import Refusals
from apps.gateway.revocation import AccessWatch, Held
from apps.gateway.sample_keeper import SampleKeeper
from apps.judging.types import JUDGES_STAMP
from apps.rbac.authentication import TokenCache
from apps.rbac.types import Principal
from apps.routing.selectors import Balancer, ResponseCache, RoutingTable, snapshot
from apps.routing.types import RESPONSES_STAMP, RoutingSnapshot, purged_tag

if TYPE_CHECKING:
    from apps.gateway.runs import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

PURGE_TIMEOUT_S = 10.0
_ROUTING_STAMPS = ("routes", "deployments", "replicas", EXPERIMENTS_STAMP, JUDGES_STAMP)


class GatewayRuntime:
    """One per process and event loop: see ``gateway_runtime``."""

    def __init__(self) -> None:
        self.tokens = TokenCache()
        self.limits = LimitCheck(spawn=self.spawn)
        self.table = RoutingTable(balancer=Balancer(random=Random()))  # noqa: S311
        self.experiments = ExperimentSnapshot()
        self.engines = EnginePool(name=f"gateway-{os.getpid()}")
        self.live: set[Held] = set()  # requests: an engine works on them, or answers are sent
        self.connections: set[Held] = set()  # that wait for requests
        self.ledger = LedgerWriter(spawn=self.spawn)
        self.access = AccessWatch(self.live, self.connections, spawn=self.spawn)
        # What runs under an Idempotency-Key here, or looks for its answer; None: look again.
        self.named: dict[NamedRequest, asyncio.Future[KeptAnswer | None]] = {}
        self.refusals = Refusals(spawn=self.spawn)
        self.quarantine = QuarantineWatch(spawn=self.spawn)
        self.samples = SampleKeeper(spawn=self.spawn)
        self.responses = ResponseCache()
        self.runs: dict[str, Run] = {}  # that equal requests may wait for
        self.is_draining = False
        self._watcher = StampWatcher()
        self._loading: asyncio.Task[None] | None = None
        self._is_loaded = False
        self._is_stale = False
        self._background: set[asyncio.Task[Any]] = set()
        self._watcher.subscribe("access", self.tokens.forget)
        self._watcher.subscribe("access", self.limits.forget)
        self._watcher.subscribe("access", self.access.check)
        self._watcher.subscribe(QUARANTINE_STAMP, self.quarantine.forget)
        self._watcher.subscribe(RESPONSES_STAMP, self._on_purge)
        for name in _ROUTING_STAMPS:
            self._watcher.subscribe(name, self._on_routing_change)

    def watch(self) -> None:
        """Hear of changes from now on, on the running loop."""
        self._watcher.start()

    async def ready(self) -> None:
        """Return once routes were read at least once; raises Unavailable when they cannot be."""
        self.watch()
        if self._is_loaded:
            return
        try:
            await asyncio.shield(self._reload())
        except (DatabaseError, InterfaceError) as error:
            raise Unavailable("The routes cannot be read at the moment.") from error

    async def stamps(self) -> Mapping[str, int]:
        """Return how often things have changed, as of a moment ago."""
        return await self._watcher.values()

    async def admit(
        self, *, principal: Principal, model: str, end_user: str | None, is_counted: bool
    ) -> Admitted:
        """Return whose limits hold for a request to ``model``; raises as ``LimitCheck.admit``."""
        found = self.table.snapshot.named(model)
        return await self.limits.admit(
            principal=principal,
            model=model,
            route_name=model if found is None else found.name,
            end_user=end_user,
            is_counted=is_counted,
        )

    def check_admitting(self) -> None:
        """Raise Draining while this process is stopping."""
        if self.is_draining:
            raise Draining

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run work that must end even when the request that asked for it is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def interrupt_all(self) -> None:
        """End every live request with an error that its client sees in-band."""
        for work in list(self.live):
            work.interrupt(Draining())

    async def aclose(self) -> None:
        """Stop watching, finish what must be finished, close the engines' connections."""
        await self._watcher.stop()
        self.refusals.close()
        while self._background:
            await asyncio.wait(self._background)
        await self.engines.aclose()

    def _on_purge(self, _stamp: str) -> None:
        """Forget here, and have every engine forget. What was purged before this process began to
        listen is done."""
        before, seen = self._watcher.before, self._watcher.seen
        self.responses.purge(seen)
        if before is None:
            return
        moved = (name for name, value in seen.items() if before.get(name) != value)
        if tags := [tag for tag in map(purged_tag, moved) if tag is not None]:
            self.spawn(self._engines_purge(tags))

    async def _engines_purge(self, tags: Iterable[str]) -> None:
        """Have the engines forget the prefixes of prompts that they keep under these tags."""
        endpoints = {each for group in self.table.snapshot.endpoints.values() for each in group}
        for endpoint in endpoints:
            try:
                client = await self.engines.client(endpoint)
                for tag in tags:
                    await client.purge(tag, timeout_s=PURGE_TIMEOUT_S)
            except EngineClientError as error:  # one that is gone keeps nothing
                logger.error("Engine %s was not purged: %s", endpoint.engine_name, error)

    def _on_routing_change(self, _stamp: str) -> None:
        self._is_stale = True
        if self._is_loaded:
            self._reload()

    def _reload(self) -> "asyncio.Task[None]":
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(_log_failure)
        return self._loading

    async def _load(self) -> None:
        """Read until nothing changed while reading, so that no news is lost to a race."""
        while True:
            self._is_stale = False
            try:
                found, experiments = await database_hop(_snapshots)
            except (DatabaseError, InterfaceError):
                if not self._is_loaded:
                    raise
                await asyncio.sleep(0.5)
                continue
            self.table.replace(found)
            self.experiments = experiments
            self.engines.retain(each for group in found.endpoints.values() for each in group)
            self._is_loaded = True
            if not self._is_stale:
                return


def _snapshots() -> tuple[RoutingSnapshot, ExperimentSnapshot]:
    """Return where requests go at this moment, and what experiments do to them."""
    routing = snapshot()
    return routing, experiments_snapshot(routing)


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("Routes cannot be read: %s", error)


_runtime: GatewayRuntime | None = None
_loop: asyncio.AbstractEventLoop | None = None


def gateway_runtime() -> GatewayRuntime:
    """Return the runtime of the running event loop, making it on first use."""
    global _runtime, _loop
    loop = asyncio.get_running_loop()
    if _runtime is None or _loop is not loop:
        _runtime, _loop = GatewayRuntime(), loop
    return _runtime
