"""Counts requests that were refused before an engine had them. They have no row in the ledger: a
flood of them must cost the database nothing, and its operator shall see it all the same."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.core.exceptions import AppError, Unavailable
from apps.core.hop import database_hop
from apps.metering.services import refusals_add
from apps.metering.types import RefusalKey
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)

WRITE_EVERY_S: Final = 5.0
# Of one process between two writes; who sends more kinds of wrong requests is counted for these.
MAX_KEYS: Final = 1000


class Refusals:
    """Of one event loop. What a killed process has counted since its last write is lost."""

    def __init__(self, *, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._spawn = spawn
        self._counts: Counter[RefusalKey] = Counter()
        self._is_writing = False
        self._closing = asyncio.Event()

    def note(self, principal: Principal, error: AppError) -> None:
        """Count a refusal; a fault of ours is none, but that we cannot serve at the moment is."""
        if error.status >= 500 and error.status != Unavailable.status:
            return
        hour = timezone.now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        key = _key(hour, principal, error)
        if key in self._counts or len(self._counts) < MAX_KEYS:
            self._counts[key] += 1
        if not self._is_writing:
            self._is_writing = True
            self._spawn(self._write_later())

    def close(self) -> None:
        """Write what there is now, and whatever comes at once."""
        self._closing.set()

    async def _write_later(self) -> None:
        try:
            async with asyncio.timeout(WRITE_EVERY_S):
                await self._closing.wait()
        except TimeoutError:
            pass
        counts, self._counts, self._is_writing = self._counts, Counter(), False
        try:
            await database_hop(refusals_add, counts)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("%d refusals are not counted: %s", counts.total(), error)


def _key(hour: datetime, principal: Principal, error: AppError) -> RefusalKey:
    return RefusalKey(period_start=hour, tenant_id=principal.tenant_id, code=error.code)
