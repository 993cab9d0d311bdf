"""Keeps answers for judges, after their requests have ended. One write at a time, so that it never
takes more than one of the threads that requests wait for; what it cannot keep is lost, and nothing
else is."""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from django.db import DatabaseError, InterfaceError

from apps.core.gathering import Spawn
from apps.core.hop import database_hop
from apps.judging.services import samples_keep
from apps.judging.types import JudgedText

logger = logging.getLogger(__name__)

# Answers that wait to be written; more of them are not kept.
MAX_WAITING: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAnswer:
    """What is to be kept of a request, and for whom."""

    judge_ids: tuple[int, ...]
    tenant_id: int
    request_id: str
    end_user: str
    text: JudgedText = field(repr=False)


class SampleKeeper:
    """Of one event loop."""

    def __init__(self, *, spawn: Spawn) -> None:
        self._spawn = spawn
        self._waiting: deque[FoundAnswer] = deque()
        self._is_working = False

    def put(self, found: FoundAnswer) -> None:
        """Have it kept, soon; nobody waits for that."""
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("The answer %s is not kept: too many wait", found.request_id)
            return
        self._waiting.append(found)
        if not self._is_working:
            self._is_working = True
            self._spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                found = self._waiting.popleft()
                try:
                    await database_hop(_keep, found)
                except (DatabaseError, InterfaceError) as error:
                    logger.warning("The answer %s is not kept: %s", found.request_id, error)
                except Exception:
                    logger.exception("The answer %s is not kept", found.request_id)
        finally:
            self._is_working = False


def _keep(found: FoundAnswer) -> None:
    samples_keep(
        judge_ids=found.judge_ids,
        tenant_id=found.tenant_id,
        request_id=found.request_id,
        end_user=found.end_user,
        text=found.text,
    )
