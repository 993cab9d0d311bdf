"""Sequences that wait for a place in the batch, first come first served."""

from collections import deque
from collections.abc import Iterator

from engine_service.errors import Overloaded
from engine_service.scheduling.sequence import Sequence

_RETRY_AFTER_S = 1.0


class RequestQueue:
    """A bounded queue; what was preempted returns to its head, past the bound if need be."""

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queue: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def append(self, sequence: Sequence) -> None:
        """Queue a new sequence; raises Overloaded when the queue is full."""
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(
                f"{len(self._queue)} requests are waiting already", retry_after_s=_RETRY_AFTER_S
            )
        self._queue.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        self._queue.appendleft(sequence)

    def head(self) -> Sequence:
        return self._queue[0]

    def pop(self) -> Sequence:
        return self._queue.popleft()

    def remove(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
