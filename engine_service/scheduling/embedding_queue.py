"""Which texts of which embedding requests the next step reads.

Requests take turns (round-robin), so that one of a thousand long texts does not hold back one of a
single short text. Whose turn it is brings its longest unread text; texts of any request that are
nearest below it in length, down to half of it, fill the step.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from engine_service.errors import Overloaded


class PendingInput(NamedTuple):
    """Text ``position`` of request ``key``; ordered by length first."""

    n_tokens: int
    key: int
    position: int


class EmbeddingQueue:
    """max_tokens: most tokens of one step, padding included; a longer text goes alone.
    max_inputs: most texts of one step. max_requests: most requests with unread texts."""

    def __init__(self, *, max_tokens: int, max_inputs: int, max_requests: int) -> None:
        self._max_tokens = max_tokens
        self._max_inputs = max_inputs
        self._max_requests = max_requests
        # All unread texts by length, and those of each request, in the order of turns.
        self._inputs: list[PendingInput] = []
        self._unread: OrderedDict[int, list[PendingInput]] = OrderedDict()

    def __len__(self) -> int:
        """How many requests have unread texts."""
        return len(self._unread)

    def add(self, key: int, lengths: Sequence[int]) -> None:
        """Queue a request of at least one text. Raises Overloaded."""
        if len(self._unread) >= self._max_requests:
            raise Overloaded(
                f"{len(self._unread)} embedding requests are waiting", retry_after_s=1.0
            )
        inputs = sorted(PendingInput(n_tokens, key, i) for i, n_tokens in enumerate(lengths))
        self._unread[key] = inputs
        self._inputs += inputs
        self._inputs.sort()

    def remove(self, key: int) -> None:
        """Drop a request's unread texts; idempotent."""
        if self._unread.pop(key, None) is not None:
            self._inputs = [pending for pending in self._inputs if pending.key != key]

    def next_batch(self) -> list[PendingInput]:
        """Take the texts of the next step, longest last; empty when there is none."""
        if not self._unread:
            return []
        key = next(iter(self._unread))
        longest = self._unread[key][-1]
        most = max(1, min(self._max_inputs, self._max_tokens // longest.n_tokens))
        first = bisect_left(self._inputs, (longest.n_tokens + 1) // 2, key=_length)
        last = bisect_right(self._inputs, longest.n_tokens, key=_length)
        end = min(last, bisect_left(self._inputs, longest) + most)
        start = max(first, end - most)
        batch = self._inputs[start:end]
        del self._inputs[start:end]
        self._unread.move_to_end(key)
        for pending in batch:
            unread = self._unread[pending.key]
            del unread[bisect_left(unread, pending)]
            if not unread:
                del self._unread[pending.key]
        return batch


def _length(pending: PendingInput) -> int:
    return pending.n_tokens
