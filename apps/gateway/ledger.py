"""A request's row of the ledger as the doors keep it: durable before anything is dispatched, closed
once whatever happens to the client, the engine or the task."""

import asyncio
import logging
import time
from typing import Final

from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.metering.services import reserve, settle
from apps.metering.types import Ending, Grant, Reservation, Settlement

logger = logging.getLogger(__name__)

SETTLE_AGAIN_S: Final = 1.0


class LedgerEntry:
    """One row. ``settle`` may be called before ``reserve`` has ended, and then waits for it."""

    def __init__(self, *, runtime: GatewayRuntime, reservation: Reservation) -> None:
        self._runtime = runtime
        self._reservation = reservation
        self._reserving: asyncio.Task[Grant] | None = None

    async def reserve(self) -> Grant:
        """Write the row, to its end even when the caller is cancelled meanwhile; return what the
        limits grant.

        Raises:
            LimitExceeded: they grant too little.
            Unavailable: it cannot be written; nothing may be dispatched.
        """
        self._reserving = self._runtime.spawn(self._reserve())
        return await asyncio.shield(self._reserving)

    async def settle(self, ending: Ending) -> None:
        """Close the row if there is one. While the database is away it goes on trying."""
        if self._reserving is None:
            return
        await asyncio.wait({self._reserving})
        if self._reserving.exception() is not None:
            return
        settlement = Settlement(
            request_id=self._reservation.request_id,
            grant=self._reserving.result(),
            ending=ending,
            n_prompt_tokens=self._reservation.n_prompt_tokens,
            prices=self._reservation.principal.prices,
        )
        try:
            await database_hop(settle, settlement)
        except (DatabaseError, InterfaceError) as error:
            logger.error("Request %s is not settled yet: %s", settlement.request_id, error)
            self._runtime.spawn(self._settle_later(settlement))

    async def _reserve(self) -> Grant:
        try:
            return await database_hop(reserve, self._reservation)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("Request %s was not reserved: %s", self._reservation.request_id, error)
            raise Unavailable("The request cannot be recorded at the moment.") from error

    async def _settle_later(self, settlement: Settlement) -> None:
        """Try on without the client until the row's life is over and the sweeper closes it."""
        until_s = time.monotonic() + self._reservation.lifetime_s
        while time.monotonic() < until_s:
            await asyncio.sleep(SETTLE_AGAIN_S)
            try:
                await database_hop(settle, settlement)
            except (DatabaseError, InterfaceError):
                continue
            logger.info("Request %s is settled now", settlement.request_id)
            return
