"""Refuses requests that engines died of, and notes who was there when one is lost. While nothing is
suspected it costs a request nothing; what is known is read when its stamp moves."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.core.hop import database_hop
from apps.engines.exceptions import EngineDead
from apps.engines.selectors import quarantine_at
from apps.engines.services import suspects_clear, suspicions_note
from apps.engines.types import Quarantine, Suspect
from apps.gateway.exceptions import RequestQuarantined
from apps.gateway.shaping import shaping
from apps.rbac.types import Principal
from apps.routing.selectors import Lease

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
_TRIES: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """A request of any endpoint, on its way to one engine. request_id: empty until it has one."""

    principal: Principal
    request: Any
    lease: Lease
    request_id: str = ""

    def digest(self) -> str:
        """Return the SHA-256 of what makes a request the same one, to the same model. Whoever reads
        it cannot find out the words by trying: the tenant's salt is in it."""
        target = self.lease.destination
        whole = (
            self.principal.tenant_id, self.principal.cache_salt,
            target.deployment_id, target.model_version_id,
            self.request.endpoint, shaping(self.request),
        )  # fmt: skip
        return hashlib.sha256(msgspec.msgpack.encode(whole)).hexdigest()

    def suspect(self) -> Suspect:
        endpoint = self.lease.endpoint
        return Suspect(
            tenant_id=self.principal.tenant_id,
            digest=self.digest(),
            deployment_name=endpoint.deployment_name,
            engine_name=endpoint.engine_name,
            epoch=endpoint.epoch,
            request_id=self.request_id,
        )


class QuarantineWatch:
    """Of one event loop. Subscribe ``forget`` to the stamp of the quarantine."""

    def __init__(self, *, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._spawn = spawn
        self._known: Quarantine | None = None
        self._is_stale = False
        self._suspects: list[Suspect] = []
        self._cleared: set[str] = set()
        self._is_writing = False

    def forget(self, _stamp: str = "") -> None:
        """Look again before the next request."""
        self._is_stale = True

    async def check(self, dispatched: Dispatched) -> None:
        """Raises RequestQuarantined where engines died of an equal request. While that cannot be
        read, what was known holds."""
        known = await self._quarantine()
        if not known.refused:
            return
        until = known.refused.get(dispatched.digest())
        if until is not None and until > timezone.now():
            raise RequestQuarantined(until=until)

    def over(
        self, dispatched: Dispatched, *errors: BaseException | None, is_completed: bool
    ) -> None:
        """Note how it ended: with its engine, or well, which clears it of what is held against
        it. A remote server is not ours to watch."""
        if dispatched.lease.endpoint.remote is not None:
            return
        if any(isinstance(error, EngineDead) for error in errors):
            self._suspects.append(dispatched.suspect())
        elif is_completed and self._known is not None and self._known.suspected:
            digest = dispatched.digest()
            if digest in self._known.suspected and digest not in self._known.refused:
                self._cleared.add(digest)
        if (self._suspects or self._cleared) and not self._is_writing:
            self._is_writing = True
            self._spawn(self._write())

    async def _quarantine(self) -> Quarantine:
        if self._known is None or self._is_stale:
            self._is_stale = False
            try:
                self._known = await database_hop(quarantine_at, timezone.now())
            except (DatabaseError, InterfaceError) as error:
                logger.warning("The quarantine cannot be read: %s", error)
                self._is_stale = True
        return self._known or _NONE

    async def _write(self) -> None:
        """Write until there is nothing left; give up on a database that stays away."""
        try:
            n_failures = 0
            while (self._suspects or self._cleared) and n_failures < _TRIES:
                suspects, self._suspects = self._suspects, []
                cleared, self._cleared = self._cleared, set()
                try:
                    if suspects:
                        await database_hop(suspicions_note, suspects)
                        suspects = []
                    if cleared:
                        await database_hop(suspects_clear, list(cleared))
                except (DatabaseError, InterfaceError) as error:
                    logger.warning("Suspicions are not written yet: %s", error)
                    self._suspects += suspects
                    self._cleared |= cleared
                    n_failures += 1
                    await asyncio.sleep(_AGAIN_S)
        finally:
            self._is_writing = False


_NONE: Final = Quarantine(refused={}, suspected=frozenset())
