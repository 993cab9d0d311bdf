"""What a process remembers of the database for a short while."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Bounded, for one event loop. Subscribe ``forget`` to the stamp of what is remembered: a
    look-up that began before a change is not remembered after it, so that what was true before
    cannot slip back in.
    """

    def __init__(
        self,
        *,
        life_s: float = 10.0,
        size: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._life_s = life_s
        self._size = size
        self._clock = clock
        self._generation = 0
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def forget(self, _stamp: str = "") -> None:
        """Forget everything; the next use of each key asks anew."""
        self._generation += 1
        self._entries.clear()

    async def get(self, key: K, look_up: Callable[[], Awaitable[tuple[V, float | None]]]) -> V:
        """Return what is known of ``key``, else what ``look_up`` returns: a value, and for how many
        seconds it is good at most. What it raises is not remembered."""
        entry = self._entries.get(key)
        if entry is not None and self._clock() < entry[1]:
            return entry[0]
        generation, asked_s = self._generation, self._clock()
        value, life_s = await look_up()
        if generation == self._generation:
            until_s = asked_s + (self._life_s if life_s is None else min(self._life_s, life_s))
            self._entries[key] = value, until_s
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return value
