"""The memory of a device that several engines may share: given back and taken by one of them, as it
is told whose turn it is. Whoever tells it decides that: the agent, by ``apps/engines/turns.py``."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from engine_service.errors import DeadlineExceeded, EngineError, EngineLost, Overloaded
from engine_service.runner.device_memory import Memory
from engine_service.scheduling.sequence import Sequence

logger = logging.getLogger(__name__)

# A request that has waited so long for the memory is refused.
LONGEST_WAIT_S: Final = 60.0
_RETRY_AFTER_S: Final = 5.0
_TRY_AGAIN_AFTER_S: Final = 5.0


class MemoryTurn:
    """Until somebody says otherwise the memory may be had, as by an engine that shares none.

    memory: None of an engine that keeps its own. forget: called before any is given back. clock:
    seconds, as the scheduler's.
    """

    def __init__(
        self,
        memory: Memory | None,
        *,
        forget: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.may_hold = True
        self._memory = memory
        self._forget = forget
        self._clock = clock
        self._ended_at_s = 0.0
        self._tries_at_s = 0.0

    @property
    def is_there(self) -> bool:
        return self._memory is None or self._memory.is_there

    @property
    def is_given_back(self) -> bool:
        """None of it is there, not even a part."""
        return self._memory is not None and self._memory.is_given_back

    @property
    def saved_bytes(self) -> int:
        """What the host keeps of it."""
        return 0 if self._memory is None else self._memory.saved_bytes

    @property
    def has_to_give(self) -> bool:
        """There is something that others should have, and giving it did not fail just now."""
        is_late = self._clock() >= self._tries_at_s
        return not self.may_hold and not self.is_given_back and is_late

    def tell(self, *, may_hold: bool) -> None:
        """Say whose turn it is, as often as one likes. What keeps its own is not told."""
        if self._memory is None:
            return
        if self.may_hold and not may_hold:
            self._ended_at_s = self._clock()
        self.may_hold = may_hold

    def rest(self) -> bool:
        """Do a part of giving it back; return whether there is more to do."""
        if self._memory is None or self._memory.is_given_back:
            return False
        if self._memory.save_next():
            return True
        self._forget()
        self._memory.give_back()
        return False

    def give_next(self) -> None:
        """Do a part of giving to others what they should have."""
        if not self.has_to_give:
            return
        try:
            self.rest()
        except EngineLost:
            raise
        except Exception:  # such as no memory on the host: it keeps what it has for a while
            logger.exception("the engine cannot sleep")
            self._tries_at_s = self._clock() + _TRY_AGAIN_AFTER_S

    def take_next(self) -> None:
        """Do a part of taking it again. Raises Overloaded where it is not there to be taken."""
        if self._memory is not None:
            self._memory.take_next()

    def overdue(self, live: Iterable[Sequence]) -> list[tuple[Sequence, EngineError]]:
        """Return who of these has not begun and waits for the memory no longer, and why."""
        if self.may_hold:
            return []
        now_s = self._clock()
        found: list[tuple[Sequence, EngineError]] = []
        for sequence in not_begun(live):
            since_s = max(self._ended_at_s, sequence.arrived_at_s)
            if sequence.expires_at_s <= now_s:
                late = DeadlineExceeded("the request waited beyond its deadline")
                found.append((sequence, late))
            elif now_s - since_s >= LONGEST_WAIT_S:
                text = f"others have had the GPU's memory for {LONGEST_WAIT_S:g} s"
                found.append((sequence, Overloaded(text, retry_after_s=_RETRY_AFTER_S)))
        return found


def not_begun(live: Iterable[Sequence]) -> list[Sequence]:
    """Return those that were never computed."""
    return [leader for leader in live if leader.seniority is None]


def has_begun(live: Iterable[Sequence]) -> bool:
    """Whether one of them was computed, be it that it was put off since."""
    return any(leader.seniority is not None for leader in live)
