"""Holds a claimed batch while a worker's event loop is on it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from apps.batches import running
from apps.batches.exceptions import LeaseLost
from apps.batches.types import Claim
from apps.core.hop import database_hop

logger = logging.getLogger(__name__)

_RENEW_MOST_S: Final = 2.0


class HeldLease:
    """``status`` is the batch's as of the last renewal, which is how a worker hears that it is
    being cancelled. Once ``is_lost``, the batch is somebody else's."""

    def __init__(self, claim: Claim, *, lease_s: float) -> None:
        self.status = claim.status
        self.is_lost = False
        self._claim = claim
        self._lease_s = lease_s

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew it until the block ends; then let others have the batch."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            await database_hop(running.lease_release, claim=self._claim)

    async def renew(self) -> str:
        """Return the batch's status, now. Raises LeaseLost."""
        self.status = await database_hop(
            running.lease_renew, claim=self._claim, lease_s=self._lease_s
        )
        return self.status

    async def _keep(self) -> None:
        good_until_s = time.monotonic() + self._lease_s
        while not self.is_lost:
            await asyncio.sleep(min(self._lease_s / 4, _RENEW_MOST_S))
            asked_s = time.monotonic()
            try:
                await self.renew()
                good_until_s = asked_s + self._lease_s
            except LeaseLost:
                self.is_lost = True
            except Exception as error:  # noqa: BLE001 - whatever is wrong, the lease runs out
                logger.warning("Batch %s is hard to hold: %r", self._claim.batch_id, error)
                self.is_lost = time.monotonic() > good_until_s
