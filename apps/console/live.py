"""Tells open pages of the admin how deployments do: one look a second for everybody who watches,
and to each what is new of what they may see. It rests while nobody watches."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.console.health import deployment_card
from apps.console.topics import Topic, kinds_open_to, topics_words
from apps.console.watching import LOG_PERMISSION, Words, words_of
from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.core.tenancy import every_tenant
from apps.deployments.selectors import deployments_visible_to, deployments_with_replicas
from apps.engines.selectors import engine_log_tail
from apps.sign_in.services.sessions import session_onlooker

if TYPE_CHECKING:
    from apps.engines.models import EngineProcess

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
RECHECK_S: Final = 10.0
MAX_WATCHERS: Final = 200
MAX_OWN_WATCHERS: Final = 10
LOG_LINES: Final = 100
_ACCESS: Final = "access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a person may watch. deployments: None is all of them. kinds: of topics."""

    deployments: frozenset[int] | None
    logs: bool
    kinds: frozenset[str] = frozenset()

    def sees(self, deployment_id: int) -> bool:
        return self.deployments is None or deployment_id in self.deployments


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How everything is. words: of each deployment. logs: the ends of its engines' logs, of those
    deployments whose logs somebody reads. topics: the words of what else somebody asked for."""

    words: Mapping[int, Words]
    logs: Mapping[int, Mapping[str, str]]
    topics: Mapping[Topic, Words]


class Watcher(Protocol):
    """An open page. log_of: the deployment whose logs it shows. topics: what else it shows."""

    session_key: str
    sight: Sight
    log_of: int | None
    topics: frozenset[Topic]

    def end(self) -> None:
        """Its person may watch no more. Idempotent."""


@every_tenant("what somebody may see is asked before it is known whose rows they may")
def sight_of(session_key: str) -> Sight | None:
    """Return what the person of a session may watch; None where they may not, or no more."""
    user = session_onlooker(session_key)
    if user is None or not user.is_staff:
        return None
    visible, kinds = deployments_visible_to(user), kinds_open_to(user.access)
    if visible is not None and not visible and not kinds:
        return None
    return Sight(deployments=visible, logs=user.access.may(LOG_PERMISSION), kinds=kinds)


class LiveHub:
    """Of one event loop: see ``live_hub``."""

    def __init__(self) -> None:
        self.view: View | None = None
        self._watchers: set[Watcher] = set()
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._rates = Rates()
        self._access: int | None = None
        self._checked_s = 0.0

    def join(self, watcher: Watcher) -> bool:
        """Begin to watch; False where there are too many."""
        n_own = sum(each.session_key == watcher.session_key for each in self._watchers)
        if len(self._watchers) >= MAX_WATCHERS or n_own >= MAX_OWN_WATCHERS:
            return False
        self._watchers.add(watcher)
        if self._task is None or self._task.done():
            self._checked_s = time.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="live-hub")
        return True

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    async def news(self, seen: View | None) -> View:
        """Return the view once it is another one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.view is not None and self.view is not seen)
            assert self.view is not None
            return self.view

    async def _run(self) -> None:
        while self._watchers:
            began_s = time.monotonic()
            try:
                await self._tick()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("Pages are not renewed: %s", error)
            except Exception:  # what ends here would leave every open page as it is
                logger.exception("Pages are not renewed")
            await asyncio.sleep(max(0.0, began_s + TICK_S - time.monotonic()))
        self.view = None  # whoever comes next waits for a look of their own time

    async def _tick(self) -> None:
        log_of = {each.log_of for each in self._watchers if each.sight.logs}
        topics = {
            topic
            for each in self._watchers
            for topic in each.topics
            if topic[0] in each.sight.kinds
        }
        stamps, view = await database_hop(
            self._look, frozenset(log_of), frozenset(topics), now=timezone.now()
        )
        is_due = time.monotonic() - self._checked_s >= RECHECK_S
        if is_due or stamps.get(_ACCESS) != self._access:
            self._access, self._checked_s = stamps.get(_ACCESS), time.monotonic()
            await self._recheck()
        async with self._changed:
            self.view = view
            self._changed.notify_all()

    def _look(
        self, log_of: frozenset[int | None], topics: frozenset[Topic], *, now: datetime
    ) -> tuple[dict[str, int], View]:
        """Three queries, however many watch, and those of ``topics_words``."""
        stamps = change_stamps()
        words: dict[int, Words] = {}
        logs: dict[int, dict[str, str]] = {}
        for deployment in deployments_with_replicas():
            engines = [replica.engine_process for replica in deployment.replicas.all()]
            card = deployment_card(deployment, route_names=(), now=now)
            words[deployment.pk] = words_of(card, rates=self._rates.of(engines))
            if deployment.pk in log_of:
                logs[deployment.pk] = {
                    f"e{engine.pk}": "\n".join(engine_log_tail(engine, n_lines=LOG_LINES))
                    for engine in engines
                }
        return stamps, View(words=words, logs=logs, topics=topics_words(topics, now=now))

    async def _recheck(self) -> None:
        """End what its person may not see any more, and widen or narrow the rest."""
        keys = {each.session_key for each in self._watchers}
        sights = await database_hop(lambda: {key: sight_of(key) for key in keys})
        for watcher in list(self._watchers):
            sight = sights.get(watcher.session_key, watcher.sight)
            if sight is None:
                watcher.end()
            else:
                watcher.sight = sight


class Rates:
    """Tokens a second of each engine, between the two latest counts that the agent has told."""

    def __init__(self) -> None:
        self._counted: dict[int, tuple[int, float, int]] = {}
        self._rates: dict[int, float] = {}

    def of(self, engines: "list[EngineProcess]") -> dict[int, float]:
        for engine in engines:
            if not engine.stats:
                self._counted.pop(engine.pk, None)
                self._rates.pop(engine.pk, None)
                continue
            uptime_s, n_tokens = engine.stats["uptime_s"], engine.stats["n_completion_tokens"]
            before = self._counted.get(engine.pk)
            if before is not None and before[0] == engine.epoch and uptime_s > before[1]:
                self._rates[engine.pk] = (n_tokens - before[2]) / (uptime_s - before[1])
            elif before is not None and before[0] != engine.epoch:
                self._rates.pop(engine.pk, None)
            self._counted[engine.pk] = (engine.epoch, uptime_s, n_tokens)
        return {each.pk: self._rates[each.pk] for each in engines if each.pk in self._rates}


_hub: LiveHub | None = None
_loop: asyncio.AbstractEventLoop | None = None


def live_hub() -> LiveHub:
    """Return the hub of the running event loop, making it on first use."""
    global _hub, _loop
    loop = asyncio.get_running_loop()
    if _hub is None or _loop is not loop:
        _hub, _loop = LiveHub(), loop
    return _hub
