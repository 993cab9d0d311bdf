"""Ends what runs for whoever has lost access: requests in the middle of their answers, and
connections that wait for the next one."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from itertools import chain
from typing import Any, Final, Protocol

from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import AppError, Unavailable
from apps.core.hop import database_hop
from apps.gateway.exceptions import AccessRevoked
from apps.rbac.selectors import identities_in_force
from apps.rbac.types import Identity, Principal
from apps.sign_in.services.sessions import is_session_open

logger = logging.getLogger(__name__)

AGAIN_S: Final = 0.25


class Held(Protocol):
    """Something that goes on because of someone's access."""

    @property
    def principal(self) -> Principal: ...

    def interrupt(self, error: AppError) -> None:
        """End it for a reason of ours, which its client is told; idempotent."""


class AccessWatch:
    """Of one event loop. Subscribe ``check`` to the stamp ``access``.

    generation: how often access has changed. Whoever was authenticated under one generation and
    begins under a later one was in no collection when it was checked: see ``confirm``.
    """

    def __init__(
        self,
        *held: Collection[Held],
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self.generation = 0
        self._held = held
        self._spawn = spawn
        self._checking: asyncio.Task[None] | None = None

    def check(self, _stamp: str = "") -> None:
        """Look once more at everyone for whom something runs."""
        self.generation += 1
        if self._checking is None or self._checking.done():
            self._checking = self._spawn(self._check())

    async def confirm(self, principal: Principal, *, since: int) -> None:
        """Return if nothing has changed since a generation, or not for the principal.

        Raises:
            AccessRevoked: it has lost access.
            Unavailable: the database cannot be asked.
        """
        while since != self.generation:
            since = self.generation
            try:
                kept = await database_hop(_in_force, [principal.identity])
            except (DatabaseError, InterfaceError) as error:
                raise Unavailable("The access cannot be checked at the moment.") from error
            if not kept:
                raise AccessRevoked

    async def _check(self) -> None:
        """Check until nothing has changed while checking. While the database is away, go on trying:
        nobody new is admitted then."""
        while True:
            generation = self.generation
            identities = {each.principal.identity for each in self._all()}
            try:
                kept = await database_hop(_in_force, identities) if identities else set()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("Who has lost access cannot be read, trying again: %s", error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._interrupt(identities - kept)
            if generation == self.generation:
                return

    def _interrupt(self, lost: Collection[Identity]) -> None:
        for each in list(self._all()) if lost else ():
            if each.principal.identity in lost:
                each.interrupt(AccessRevoked())

    def _all(self) -> Iterable[Held]:
        return chain.from_iterable(self._held)


def _in_force(identities: Collection[Identity]) -> set[Identity]:
    """Return those that may still use models: of people also where their session goes on."""
    kept = identities_in_force(identities)
    over = {
        key
        for key in {each.session_key for each in kept}
        if key is not None and not is_session_open(key)
    }
    return {each for each in kept if each.session_key not in over}
