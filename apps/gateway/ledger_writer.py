"""The ledger's writes of one process. What waits at a time is written by one transaction, because
most of a write's cost is the transaction's and not the row's."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, cast

from django.db import IntegrityError, InterfaceError, OperationalError

from apps.core.gathering import Gathering, Spawn
from apps.core.hop import DatabaseAway, database_hop
from apps.core.tenancy import every_tenant
from apps.metering.services import reserve, settle, write_group
from apps.metering.types import Grant, Reservation, Settlement

logger = logging.getLogger(__name__)

GROUP_AT_MOST: Final = 100

Write = Reservation | Settlement


class LedgerWriter:
    """Of one event loop. An answer is given once its transaction is committed."""

    def __init__(self, *, spawn: Spawn) -> None:
        self._writes: Gathering[Write, Grant | bool] = Gathering(
            _write, at_most=GROUP_AT_MOST, spawn=spawn
        )

    def reserve(self, reservation: Reservation) -> "asyncio.Future[Grant]":
        """Write a row and hold what it may cost, to the end even if nobody waits for it; raises as
        ``metering.services.reserve``, and what the database raises."""
        return cast("asyncio.Future[Grant]", self._writes.ask(reservation))

    def settle(self, settlement: Settlement) -> "asyncio.Future[bool]":
        """Close a row; True where this did."""
        return cast("asyncio.Future[bool]", self._writes.ask(settlement))


async def _write(writes: Sequence[Write]) -> Sequence[Grant | bool | Exception]:
    with every_tenant("those who wait together are of several"):
        if len(writes) == 1:
            return [await _alone(writes[0])]
        try:
            return await database_hop(write_group, writes)
        except DatabaseAway:
            raise
        except Exception as error:  # noqa: BLE001 - one's fault is not the others'
            logger.warning("%d writes failed together, and are tried alone: %r", len(writes), error)
            is_lost = isinstance(error, OperationalError | InterfaceError)
        answers = await asyncio.gather(*map(_alone, writes), return_exceptions=True)
        if is_lost:
            answers = [_unheard(each) for each in answers]
        return cast("list[Grant | bool | Exception]", answers)


def _unheard(answer: Grant | bool | BaseException) -> Grant | bool | BaseException:
    """Say of a row that is there already that nobody heard of it: it was its group's."""
    if isinstance(answer, IntegrityError):
        return OperationalError(f"it was written as the connection was lost: {answer}")
    return answer


async def _alone(write: Write) -> Grant | bool:
    if isinstance(write, Reservation):
        return await database_hop(reserve, write)
    return await database_hop(settle, write)
