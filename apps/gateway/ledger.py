"""A request's row of the ledger as the doors keep it: durable before anything is dispatched, closed
once whatever happens to the client, the engine or the task."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from django.db import DatabaseError, InterfaceError, OperationalError

from apps.core.exceptions import Unavailable
from apps.core.hop import DatabaseAway, database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.metering.services import reservation_void
from apps.metering.types import Ending, Grant, Reservation, Settlement

logger = logging.getLogger(__name__)

SETTLE_AGAIN_S: Final = 1.0


class LedgerEntry:
    """One row. ``settle`` may be called before ``reserve`` has ended, and then waits for it."""

    def __init__(self, *, runtime: GatewayRuntime, reservation: Reservation) -> None:
        self._runtime = runtime
        self._reservation = reservation
        self._reserving: asyncio.Future[Grant] | None = None

    async def reserve(self) -> Grant:
        """Write the row, to its end even when the caller is cancelled meanwhile; return what the
        limits grant.

        Raises:
            LimitExceeded: they grant too little.
            Unavailable: it cannot be written; nothing may be dispatched.
        """
        self._reserving = self._runtime.ledger.reserve(self._reservation)
        self._reserving.add_done_callback(self._void_if_unheard)
        try:
            return await asyncio.shield(self._reserving)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("Request %s was not reserved: %s", self._reservation.request_id, error)
            raise Unavailable("The request cannot be recorded at the moment.") from error

    async def settle(self, ending: Ending) -> None:
        """Close the row if there is one. While the database is away it goes on trying."""
        if self._reserving is None:
            return
        await asyncio.wait({self._reserving})
        if self._reserving.cancelled() or self._reserving.exception() is not None:
            return
        settlement = Settlement(
            request_id=self._reservation.request_id,
            grant=self._reserving.result(),
            ending=ending,
            n_prompt_tokens=(
                self._reservation.n_prompt_tokens
                if ending.n_prompt_tokens is None
                else ending.n_prompt_tokens
            ),
            prices=self._reservation.principal.prices,
        )
        try:
            await self._runtime.ledger.settle(settlement)
        except (DatabaseError, InterfaceError) as error:
            logger.error("Request %s is not settled yet: %s", settlement.request_id, error)
            self._runtime.spawn(self._close_later(partial(self._runtime.ledger.settle, settlement)))

    def _void_if_unheard(self, reserving: "asyncio.Future[Grant]") -> None:
        error = None if reserving.cancelled() else reserving.exception()
        if error is not None and _may_be_written(error):
            void = partial(database_hop, reservation_void, self._reservation.request_id)
            self._runtime.spawn(self._close_later(void))

    async def _close_later(self, close: Callable[[], Awaitable[bool]]) -> None:
        """Try on without the client until the row's life is over and the sweeper closes it."""
        until_s = time.monotonic() + self._reservation.lifetime_s
        while time.monotonic() < until_s:
            await asyncio.sleep(SETTLE_AGAIN_S)
            try:
                is_closed = await close()
            except (DatabaseError, InterfaceError):
                continue
            if is_closed:
                logger.info("Request %s is settled now", self._reservation.request_id)
            return


def _may_be_written(error: BaseException) -> bool:
    """Whether a write may have been done although it failed here: the connection was lost, and with
    it perhaps no more than the word that it was done."""
    is_lost = isinstance(error, OperationalError | InterfaceError)
    return is_lost and not isinstance(error, DatabaseAway)
