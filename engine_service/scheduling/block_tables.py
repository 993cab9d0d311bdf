"""Keeps the block tables of sequences in step with the pool: who holds, shares and writes what.

Answers to one prompt share its blocks. Only the last of these may be part full and thus be written
again: whoever writes it while another holds it gets a copy of its own first (copy-on-write).
"""

from dataclasses import dataclass

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.sequence import Sequence
from engine_service.scheduling.tiers import NO_TRANSFERS, Transfers


@dataclass(frozen=True, slots=True)
class KnownPrefix:
    """What need not be computed of a sequence. blocks: of the pool; then digests: of blocks that
    are kept below it."""

    blocks: list[int]
    digests: list[bytes]

    @property
    def n_blocks(self) -> int:
        return len(self.blocks) + len(self.digests)


class BlockTables:
    """Invariant: a block that a step writes is held by the sequence that writes it and no other."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._copies: list[tuple[int, int]] = []

    def known_prefix(self, sequence: Sequence) -> KnownPrefix:
        """Return the longest prefix that may be taken from the cache."""
        # The last token is always computed, for its logits: its block must not come from the cache.
        block_size = self._blocks.block_size
        n_cacheable = (len(sequence) - 1) // block_size
        if sequence.sampling.prompt_logprobs is not None:
            # The cache keeps no logits.
            n_cacheable = min(n_cacheable, sequence.n_scored // block_size)
        digests = sequence.block_digests(n_cacheable, block_size=block_size)
        blocks, tiers = self._blocks.lookup(digests), self._blocks.tiers
        return KnownPrefix(blocks, [] if tiers is None else tiers.known(digests[len(blocks) :]))

    def open(self, sequence: Sequence, *, known: KnownPrefix) -> bool:
        """Hold blocks for all tokens so far, or nothing and return False."""
        if self._blocks.tiers is not None:
            self._blocks.tiers.hold(known.digests)
        n_new = self._blocks.n_blocks_for(len(sequence)) - len(known.blocks)
        table = self._blocks.claim(known=known.blocks, n_new=n_new)
        if table is None:
            return False
        self._blocks.tag(known.blocks, tags=sequence.cache_tags)
        sequence.block_table = table
        n_ready = len(known.blocks) + self._load(sequence, known=known)
        sequence.n_computed = n_ready * self._blocks.block_size
        sequence.n_registered = n_ready
        return True

    def _load(self, sequence: Sequence, *, known: KnownPrefix) -> int:
        """Have blocks filled from below the pool, as far as that goes; return how many.

        ``settle_loads`` registers them: what they hold may not be read before the step ran.
        """
        if self._blocks.tiers is None:
            return 0
        n_loaded = 0
        targets = sequence.block_table[len(known.blocks) : known.n_blocks]
        for digest, block in zip(known.digests, targets, strict=True):
            if not self._blocks.tiers.load(digest, block=block, tags=sequence.cache_tags):
                break
            n_loaded += 1
        return n_loaded

    def extend(self, sequence: Sequence, *, n_new: int) -> bool:
        """Make the slots of the next ``n_new`` tokens the sequence's own, or return False."""
        table = sequence.block_table
        n_lacking = max(0, self._blocks.n_blocks_for(sequence.n_computed + n_new) - len(table))
        first = sequence.n_computed // self._blocks.block_size
        is_shared = first < len(table) and self._blocks.is_shared(table[first])
        if not (n_lacking or is_shared):
            return True
        claimed = self._blocks.claim(known=(), n_new=n_lacking + is_shared)
        if claimed is None:
            return False
        if is_shared:
            copy = claimed.pop()
            self._copies.append((table[first], copy))
            self._blocks.release((table[first],))
            table[first] = copy
        table += claimed
        return True

    def extend_freely(self, sequence: Sequence, *, n_new: int) -> int:
        """Do so for as many of the ``n_new`` tokens as free blocks allow; return how many."""
        if self.extend(sequence, n_new=n_new):
            return n_new
        return len(sequence.block_table) * self._blocks.block_size - sequence.n_computed

    def trim(self, sequence: Sequence) -> None:
        """Give up blocks behind the last token's."""
        n_blocks = self._blocks.n_blocks_for(len(sequence))
        self._blocks.release(sequence.block_table[n_blocks:])
        del sequence.block_table[n_blocks:]

    def share(self, sequence: Sequence, *, fork: Sequence) -> None:
        """Have a fork hold all that its leader holds."""
        self._blocks.share(sequence.block_table)
        fork.follow(sequence)

    def close(self, sequence: Sequence) -> None:
        """Give up all of a sequence's blocks."""
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.n_computed = 0
        sequence.n_registered = 0

    def register_full(self, sequence: Sequence) -> None:
        """Make the blocks findable whose tokens are all computed."""
        n_full = sequence.n_computed // self._blocks.block_size
        if n_full == sequence.n_registered:
            return
        digests = sequence.block_digests(n_full, block_size=self._blocks.block_size)
        for index in range(sequence.n_registered, n_full):
            self._blocks.register(
                sequence.block_table[index], digest=digests[index], tags=sequence.cache_tags
            )
        sequence.n_registered = n_full

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Return the blocks to copy before the next step computes, each pair from and to."""
        copies, self._copies = self._copies, []
        return tuple(copies)

    def take_transfers(self) -> Transfers:
        """Return what to move between the pool and what is kept below it."""
        return NO_TRANSFERS if self._blocks.tiers is None else self._blocks.tiers.take()

    def settle_loads(self) -> None:
        """Make the blocks findable that steps have filled."""
        for arrival in () if self._blocks.tiers is None else self._blocks.tiers.settle():
            self._blocks.register(arrival.block, digest=arrival.digest, tags=arrival.tags)

    def is_loading(self, sequence: Sequence) -> bool:
        """Return whether it counts on a block that no step is known to have filled."""
        tiers = self._blocks.tiers
        return tiers is not None and any(map(tiers.is_arriving, sequence.block_table))

    def forget_below(self, sequence: Sequence) -> None:
        """Forget what is kept below the pool of a sequence's full blocks."""
        if self._blocks.tiers is not None:
            n_full = sequence.n_computed // self._blocks.block_size
            digests = sequence.block_digests(n_full, block_size=self._blocks.block_size)
            self._blocks.tiers.forget(digests)
