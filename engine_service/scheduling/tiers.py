"""What becomes of prefix blocks that the KV pool evicts: kept in host memory, from there on disk.

Knows digests, slots and tags, no tensors: a ``BlockStore`` holds the bytes. What the pool evicts is
spilled to host memory, which is needed no sooner than this step computes; what host memory evicts
is written to disk, from where it comes back to host memory only. Both evict the least recently used
first. Whatever is loaded keeps its copies below, so that it costs nothing to evict it again.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

from engine_service.protocol import TierStats
from engine_service.scheduling.shelf import Shelf, Tags

# A step thread that reads for longer keeps everybody's next token waiting for one prompt.
_MAX_READ_S: Final = 0.1


class BlockStore(Protocol):
    """Holds the bytes of blocks in numbered slots of host memory and disk.

    ``Batch.spills`` and ``Batch.loads`` move them between the pool and host memory.
    """

    n_host_slots: int
    n_disk_slots: int
    block_bytes: int

    @property
    def n_failed_writes(self) -> int:
        """Blocks that the disk did not take."""

    def write(self, host_slot: int, *, disk_slot: int, digest: bytes) -> bool:
        """Copy a block to disk, in place of what is there, now or later; False if too many wait."""

    def read(self, disk_slot: int, *, host_slot: int, digest: bytes) -> bool:
        """Copy a block to host memory; False where it cannot be read as it was written."""

    def erase_host(self, slots: Sequence[int]) -> None:
        """Overwrite blocks."""

    def erase_disk(self, slots: Sequence[int]) -> None:
        """Make blocks unreadable, those that wait to be written included."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """What a step moves before it computes. spills: from a block of the pool to a host slot; then
    loads: from a host slot to a block."""

    spills: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()


NO_TRANSFERS: Final = Transfers()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A block of the pool that a step loads; its content is known once that has run."""

    block: int
    digest: bytes
    tags: tuple[str, ...]


@dataclass(slots=True)
class _Counters:
    n_host_hits: int = 0
    n_disk_hits: int = 0
    n_spilled: int = 0
    n_written: int = 0
    n_host_evictions: int = 0
    n_disk_evictions: int = 0
    n_dropped: int = 0
    n_unreadable: int = 0


class Tiers:
    """Invariants: each digest has one slot of a tier at most, and no slot two digests. A slot that
    the coming step reads or writes is not given away before ``take``. A digest has tags only while
    a tier has it.

    max_read_s: how long the disk may be read for one step; then what is there is passed over.
    """

    def __init__(
        self,
        store: BlockStore,
        *,
        max_read_s: float = _MAX_READ_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._store = store
        self._max_read_s = max_read_s
        self._clock = clock
        self._read_s = 0.0
        self._host = Shelf(store.n_host_slots)
        self._disk = Shelf(store.n_disk_slots)
        self._tags: Tags[bytes] = Tags()
        self._pinned: set[int] = set()
        self._pinned_on_disk: set[int] = set()
        self._spills: list[tuple[int, int]] = []
        self._loads: list[tuple[int, int]] = []
        self._arriving: dict[int, Arrival] = {}
        self._counters = _Counters()

    # -- out of the pool ---------------------------------------------------------------------

    def spill(self, block: int, *, digest: bytes, tags: Iterable[str]) -> None:
        """Keep the content of a block that is evicted now, if there is room."""
        if self._host.slot_of(digest) is None:
            slot = self._free_host_slot()
            if slot is None:
                self._counters.n_dropped += 1
                return
            self._host.put(digest, slot)
            self._pinned.add(slot)
            self._spills.append((block, slot))
            self._counters.n_spilled += 1
        else:
            self._host.touch((digest,))
        self._tags.add(digest, tags=tags)

    # -- back into it ------------------------------------------------------------------------

    def known(self, digests: Sequence[bytes]) -> list[bytes]:
        """Return the longest beginning of a hash chain that is kept; reading it may still fail."""
        found = []
        for digest in digests:
            if self._host.slot_of(digest) is None and self._disk.slot_of(digest) is None:
                break
            found.append(digest)
        return found

    def hold(self, digests: Sequence[bytes]) -> None:
        """Keep these where they are until ``take``, and longer than others after it."""
        for shelf, pinned in ((self._host, self._pinned), (self._disk, self._pinned_on_disk)):
            shelf.touch(digests)
            slots = map(shelf.slot_of, digests)
            pinned.update(slot for slot in slots if slot is not None)

    def load(self, digest: bytes, *, block: int, tags: Sequence[str]) -> bool:
        """Have the coming step fill a block, which a sequence with these tags holds; False where
        the content is not to be had."""
        slot = self._host.slot_of(digest)
        if slot is not None:
            self._counters.n_host_hits += 1
        elif (slot := self._promoted(digest)) is not None:
            self._counters.n_disk_hits += 1
        else:
            return False
        self._pinned.add(slot)
        self._tags.add(digest, tags=tags)
        self._loads.append((slot, block))
        self._arriving[block] = Arrival(block, digest, tuple(self._tags.of(digest)))
        return True

    def abandon(self, block: int) -> None:
        """Forget that a block is filled: nobody holds it any more."""
        if self._arriving.pop(block, None) is not None:
            self._loads = [load for load in self._loads if load[1] != block]

    def is_arriving(self, block: int) -> bool:
        return block in self._arriving

    # -- steps -------------------------------------------------------------------------------

    def take(self) -> Transfers:
        """Return what the next step moves; the caller runs it before anything else is asked."""
        transfers = Transfers(tuple(self._spills), tuple(self._loads))
        self._spills.clear()
        self._loads.clear()
        self._pinned.clear()
        self._pinned_on_disk.clear()
        self._read_s = 0.0
        return transfers

    def settle(self) -> list[Arrival]:
        """Return the blocks that have been filled by the steps that ran."""
        arrivals = list(self._arriving.values())
        self._arriving.clear()
        return arrivals

    def distrust(self, spills: Iterable[tuple[int, int]]) -> None:
        """Forget what a step was to spill that may not have done so, or that no step has taken."""
        digests = (self._host.digest_at(slot) for _, slot in (*spills, *self._spills))
        self.forget([digest for digest in digests if digest is not None])

    # -- forgetting --------------------------------------------------------------------------

    def purge(self, tag: str, *, digests: AbstractSet[bytes]) -> set[bytes]:
        """Forget what has the tag and ``digests``, which the pool forgets; return what was kept."""
        gone = self._tags.keys(tag) | digests
        for arrival in list(self._arriving.values()):
            if tag in arrival.tags or arrival.digest in gone:
                # Who holds the block goes on with it, and leaves nothing for others to find.
                del self._arriving[arrival.block]
        return self.forget(gone)

    def forget(self, digests: Iterable[bytes]) -> set[bytes]:
        """Erase what is kept of these digests; return those of which something was."""
        host_slots: list[int] = []
        disk_slots: list[int] = []
        found = set()
        for digest in tuple(digests):
            for shelf, slots in ((self._host, host_slots), (self._disk, disk_slots)):
                if (slot := shelf.pop(digest)) is not None:
                    slots.append(slot)
                    found.add(digest)
            self._tags.drop(digest)
        if host_slots:
            given_up = set(host_slots)
            self._spills = [spill for spill in self._spills if spill[1] not in given_up]
            self._store.erase_host(host_slots)
        if disk_slots:
            self._store.erase_disk(disk_slots)
        return found

    def stats(self) -> TierStats:
        counters = self._counters
        block_bytes = self._store.block_bytes
        return TierStats(
            host_bytes=len(self._host) * block_bytes,
            host_bytes_total=self._store.n_host_slots * block_bytes,
            disk_bytes=len(self._disk) * block_bytes,
            disk_bytes_total=self._store.n_disk_slots * block_bytes,
            n_host_hits=counters.n_host_hits,
            n_disk_hits=counters.n_disk_hits,
            n_spilled=counters.n_spilled,
            n_written=counters.n_written,
            n_host_evictions=counters.n_host_evictions,
            n_disk_evictions=counters.n_disk_evictions,
            n_dropped=counters.n_dropped + self._store.n_failed_writes,
            n_unreadable=counters.n_unreadable,
        )

    # -- slots -------------------------------------------------------------------------------

    def _promoted(self, digest: bytes) -> int | None:
        """Return the host slot into which a block was read from disk."""
        disk_slot = self._disk.slot_of(digest)
        if disk_slot is None or self._read_s >= self._max_read_s:
            return None
        self._pinned_on_disk.add(disk_slot)  # what goes to disk for its sake does not go there
        slot = self._free_host_slot()
        if slot is None:
            return None
        started_s = self._clock()
        if not self._store.read(disk_slot, host_slot=slot, digest=digest):
            self._store.erase_host((slot,))  # of whatever was there before, nobody knows any more
            self._host.give_back(slot)
            self._counters.n_unreadable += 1
            self.forget((digest,))
            return None
        self._read_s += self._clock() - started_s
        self._host.put(digest, slot)
        return slot

    def _free_host_slot(self) -> int | None:
        """Return a slot that nothing is in, evicting what was; None where all are spoken for."""
        if (slot := self._host.take_free()) is not None:
            return slot
        digest = self._host.oldest(passing_over=self._pinned)
        if digest is None:
            return None
        slot = self._host.slot_of(digest)
        assert slot is not None
        self._demote(digest, host_slot=slot)
        self._counters.n_host_evictions += 1
        self._host.pop(digest)
        self._untag_if_gone(digest)
        return self._host.take_free()

    def _demote(self, digest: bytes, *, host_slot: int) -> None:
        if self._disk.slot_of(digest) is not None:
            self._disk.touch((digest,))
            return
        if not self._store.n_disk_slots:
            return
        free = self._disk.take_free()
        victim = self._disk.oldest(passing_over=self._pinned_on_disk) if free is None else None
        disk_slot = self._disk.slot_of(victim) if victim is not None else free
        if disk_slot is None or not self._store.write(
            host_slot, disk_slot=disk_slot, digest=digest
        ):
            self._counters.n_dropped += 1
            if free is not None:
                self._disk.give_back(free)
            return
        if victim is not None:
            self._counters.n_disk_evictions += 1
            self._disk.replace(victim, digest)
            self._untag_if_gone(victim)
        else:
            self._disk.put(digest, disk_slot)
        self._counters.n_written += 1

    def _untag_if_gone(self, digest: bytes) -> None:
        if self._host.slot_of(digest) is None and self._disk.slot_of(digest) is None:
            self._tags.drop(digest)
