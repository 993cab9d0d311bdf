"""Which digest is in which slot of a tier, and what stands for whom: the bookkeeping of caches."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Shelf:
    """A bounded number of slots, and the digests in them, the least recently used first."""

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._n_ever_used = 0  # slots from here on are free, and not in the list
        self._free: list[int] = []
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        self._digest_at: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def slot_of(self, digest: bytes) -> int | None:
        return self._slot_of.get(digest)

    def digest_at(self, slot: int) -> bytes | None:
        return self._digest_at.get(slot)

    def take_free(self) -> int | None:
        """Return a slot that nothing is in, for ``put`` or ``give_back``."""
        if self._free:
            return self._free.pop()
        if self._n_ever_used < self._n_slots:
            self._n_ever_used += 1
            return self._n_ever_used - 1
        return None

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    def put(self, digest: bytes, slot: int) -> None:
        """Put a digest that is not here into a slot that was taken."""
        self._slot_of[digest] = slot
        self._digest_at[slot] = digest

    def replace(self, old: bytes, digest: bytes) -> None:
        """Put a digest in the place of another."""
        slot = self._slot_of.pop(old)
        self.put(digest, slot)

    def pop(self, digest: bytes) -> int | None:
        """Free a digest's slot and return it; None where it has none."""
        slot = self._slot_of.pop(digest, None)
        if slot is not None:
            del self._digest_at[slot]
            self._free.append(slot)
        return slot

    def touch(self, digests: Sequence[bytes]) -> None:
        """Make those that are here the most recently used, the first of a chain last."""
        for digest in reversed(digests):
            if digest in self._slot_of:
                self._slot_of.move_to_end(digest)

    def oldest(self, *, passing_over: AbstractSet[int] = frozenset()) -> bytes | None:
        """Return what was used the longest ago, but for some slots; None where nothing is left."""
        if len(passing_over) >= self._n_slots:
            return None
        return next((d for d, slot in self._slot_of.items() if slot not in passing_over), None)


class Tags(Generic[Key]):
    """Names that keys go by, found in both directions."""

    def __init__(self) -> None:
        self._tags_of: dict[Key, set[str]] = {}
        self._keys_of: dict[str, set[Key]] = {}

    def of(self, key: Key) -> AbstractSet[str]:
        return self._tags_of.get(key, frozenset())

    def keys(self, tag: str) -> AbstractSet[Key]:
        return self._keys_of.get(tag, frozenset())

    def add(self, key: Key, *, tags: Iterable[str]) -> None:
        for tag in tags:
            self._tags_of.setdefault(key, set()).add(tag)
            self._keys_of.setdefault(tag, set()).add(key)

    def drop(self, key: Key) -> None:
        """Take all of its tags from a key."""
        for tag in self._tags_of.pop(key, ()):
            keys = self._keys_of[tag]
            keys.remove(key)
            if not keys:
                del self._keys_of[tag]
