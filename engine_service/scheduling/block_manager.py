"""Who holds which block of the KV pool, and which free blocks still carry a known prefix."""

from collections import OrderedDict
from collections.abc import Sequence

from engine_service.scheduling.shelf import Tags
from engine_service.scheduling.tiers import Tiers


class BlockManager:
    """Reference counts over a fixed pool, with a prefix cache of full blocks.

    Invariants: a block is held (count above 0), blank, or idle (free, but its content is known);
    exactly one of the three. A digest names at most one block. Only blocks whose tokens are all
    computed are registered, so that whatever ``lookup`` finds may be read at once. A registered
    block has the tags of all who registered, computed or found it, any other has none.

    tiers: keep what is evicted; None keeps nothing.
    """

    def __init__(self, *, n_blocks: int, block_size: int, tiers: Tiers | None = None) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.tiers = tiers
        self._n_holders = [0] * n_blocks
        self._digest_of: list[bytes | None] = [None] * n_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank = list(range(n_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._tags: Tags[int] = Tags()

    @property
    def n_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._blank) + len(self._idle)

    @property
    def n_cached(self) -> int:
        """Blocks whose content is known, held or free."""
        return len(self._block_of)

    def n_blocks_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.block_size)

    def is_shared(self, block: int) -> bool:
        """Return whether more than one table holds it."""
        return self._n_holders[block] > 1

    def is_held(self, block: int) -> bool:
        return self._n_holders[block] > 0

    def lookup(self, digests: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest known prefix of a hash chain."""
        found = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def claim(self, *, known: Sequence[int], n_new: int) -> list[int] | None:
        """Hold the ``known`` blocks and ``n_new`` others, or nothing and return None."""
        n_known_free = sum(1 for block in known if self._n_holders[block] == 0)
        if n_new > self.n_free - n_known_free:
            return None
        for block in known:
            self._idle.pop(block, None)
            self._n_holders[block] += 1
        return [*known, *(self._take() for _ in range(n_new))]

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that another table holds already, once more."""
        for block in blocks:
            if self._n_holders[block] < 1:
                raise RuntimeError(f"block {block} is shared though nobody holds it")
            self._n_holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one hold on each block of a block table.

        The end of a prefix becomes the oldest, so that a prefix is evicted from its end.
        """
        for block in reversed(blocks):
            if self._n_holders[block] < 1:
                raise RuntimeError(f"block {block} was released more often than held")
            self._n_holders[block] -= 1
            if self._n_holders[block] == 0:
                if self._digest_of[block] is None:
                    self._blank.append(block)
                    if self.tiers is not None:
                        self.tiers.abandon(block)
                else:
                    self._idle[block] = None

    def register(self, block: int, *, digest: bytes, tags: Sequence[str] = ()) -> None:
        """Make a held, full and computed block findable; of two equal ones the first stays."""
        if self._digest_of[block] is None and digest not in self._block_of:
            self._digest_of[block] = digest
            self._block_of[digest] = block
        if (findable := self._block_of.get(digest)) is not None:
            self.tag((findable,), tags=tags)

    def tag(self, blocks: Sequence[int], *, tags: Sequence[str]) -> None:
        """Note that registered blocks hold what these tags stand for, too."""
        for block in blocks:
            self._tags.add(block, tags=tags)

    def purge(self, tag: str) -> list[int]:
        """Make every block of a tag unfindable, whatever other tags it has; return these blocks.

        Sequences that hold one go on with it.
        """
        blocks = sorted(self._tags.keys(tag))
        self.forget(blocks)
        for block in blocks:
            if block in self._idle:
                del self._idle[block]
                self._blank.append(block)
        return blocks

    def purge_tiers(self, tag: str) -> int:
        """Do the same below the pool, before it is done there; return of how many blocks something
        was kept there and not in the pool."""
        if self.tiers is None:
            return 0
        found = {self._digest_of[block] for block in self._tags.keys(tag)}
        digests = {digest for digest in found if digest is not None}
        return len(self.tiers.purge(tag, digests=digests) - digests)

    def forget_all(self) -> None:
        """Make all blocks blank, of which nobody may hold one: their content is about to go.

        What was to be spilled below the pool by a step that never came goes with it.
        """
        if self.n_free < self.n_blocks:
            raise RuntimeError("blocks are held whose content is to be forgotten")
        blocks = list(self._idle)
        self._idle.clear()
        self.forget(blocks)
        self._blank += blocks
        if self.tiers is not None:
            self.tiers.distrust(())

    def forget(self, blocks: Sequence[int]) -> None:
        """Make blocks unfindable that are held, or about to be held or blank."""
        for block in blocks:
            digest = self._digest_of[block]
            if digest is not None:
                del self._block_of[digest]
                self._digest_of[block] = None
                self._tags.drop(block)

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            digest = self._digest_of[block]
            if self.tiers is not None and digest is not None:
                self.tiers.spill(block, digest=digest, tags=self._tags.of(block))
            self.forget((block,))
        self._n_holders[block] = 1
        return block
