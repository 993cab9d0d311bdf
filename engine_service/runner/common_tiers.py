"""The memory tiers of all ranks of a tensor-parallel engine: each holds its part of every block in
the same slots as the others. Rank 0's scheduler says what is where, and rank 0 has all do it."""

from collections.abc import Sequence

from engine_service.errors import EngineLost
from engine_service.runner.kv_tiers import KVTiers, Pairs
from engine_service.runner.rank_messages import (
    EraseDisk,
    EraseHost,
    Load,
    Read,
    Spill,
    Stored,
    TierPart,
    Write,
)
from engine_service.runner.tensor_parallel import RankGroup


class CommonTiers:
    """What the ranks keep below their pools; a ``TierStore``, of whole blocks.

    All do a thing in the order in which they compute steps, and nobody waits for anybody, the disk
    aside: whether a part can be written or read its rank knows alone, so that all are asked, and
    where one says no, the block is lost to all. Each part is read by the digest of its block, so
    that parts of two blocks never make one. Raises EngineLost where rank 0 fails at its own part,
    or a rank is gone.
    """

    def __init__(self, own: KVTiers, *, ranks: RankGroup) -> None:
        self.n_host_slots = own.n_host_slots
        self.n_disk_slots = own.n_disk_slots
        self.block_bytes = own.block_bytes * ranks.n_ranks
        self.n_failed_writes = 0
        self._own = own
        self._ranks = ranks

    def spill(self, pairs: Pairs) -> None:
        self._do(Spill(list(pairs)))

    def load(self, pairs: Pairs) -> None:
        self._do(Load(list(pairs)))

    def write(self, host_slot: int, *, disk_slot: int, digest: bytes) -> bool:
        stored = self._ask(Write(host_slot, disk_slot, digest))
        if any(stored) and not all(stored):
            self.erase_disk((disk_slot,))  # nobody would know any more of the parts that are there
        return all(stored)

    def read(self, disk_slot: int, *, host_slot: int, digest: bytes) -> bool:
        return all(self._ask(Read(disk_slot, host_slot, digest)))

    def erase_host(self, slots: Sequence[int]) -> None:
        self._do(EraseHost(list(slots)))

    def erase_disk(self, slots: Sequence[int]) -> None:
        self._do(EraseDisk(list(slots)))

    def _ask(self, part: Write | Read) -> list[bool]:
        """Return who could do it."""
        own = self._do(part)
        assert own is not None
        stored = [own, *self._ranks.answers(Stored)]
        # A block of which one part is lost is lost: they are not added up.
        self.n_failed_writes = max(each.n_failed_writes for each in stored)
        return [each.is_done for each in stored]

    def _do(self, part: TierPart) -> Stored | None:
        self._ranks.send(part)
        try:
            return do_tier_part(part, tiers=self._own)
        except Exception as error:
            raise EngineLost(f"rank 0 failed at its memory tiers: {error}") from error


def do_tier_part(part: TierPart, *, tiers: KVTiers) -> Stored | None:
    """Do a rank's part; return what there is to say of it."""
    match part:
        case Spill(pairs):
            tiers.spill(pairs)
        case Load(pairs):
            tiers.load(pairs)
        case EraseHost(slots):
            tiers.erase_host(slots)
        case EraseDisk(slots):
            tiers.erase_disk(slots)
        case Write(host_slot, disk_slot, digest):
            is_done = tiers.write(host_slot, disk_slot=disk_slot, digest=digest)
            return Stored(is_done, tiers.n_failed_writes)
        case Read(disk_slot, host_slot, digest):
            is_done = tiers.read(disk_slot, host_slot=host_slot, digest=digest)
            return Stored(is_done, tiers.n_failed_writes)
    return None
