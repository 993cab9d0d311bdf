"""The last events of a session, by their numbers."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a window may hold; bytes are those of the encoded frames."""

    n_events: int
    n_bytes: int


class EventWindow:
    """Encoded frames numbered from 1 in their order; the oldest are forgotten first."""

    def __init__(self) -> None:
        self.newest = 0
        self._events: deque[bytes] = deque()
        self._n_bytes = 0

    def __getitem__(self, number: int) -> bytes:
        return self._events[number - self._oldest]

    @property
    def _oldest(self) -> int:
        return self.newest - len(self._events) + 1

    def append(self, event: bytes) -> None:
        """Keep the event of the number ``newest + 1``."""
        self._events.append(event)
        self._n_bytes += len(event)
        self.newest += 1

    def has_all_after(self, number: int) -> bool:
        """Whether every event after ``number`` is still here."""
        return number >= self._oldest - 1

    def is_over(self, bound: Bound) -> bool:
        return len(self._events) > bound.n_events or self._n_bytes > bound.n_bytes

    def trim(self, bound: Bound, *, up_to: int) -> None:
        """Forget the oldest, none after ``up_to``, until the rest is within ``bound``."""
        while self.is_over(bound) and self._oldest <= up_to:
            self._n_bytes -= len(self._events.popleft())
