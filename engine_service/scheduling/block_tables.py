"""Keeps the block tables of sequences in step with the pool: who holds, shares and writes what.

Answers to one prompt share its blocks. Only the last of these may be part full and thus be written
again: whoever writes it while another holds it gets a copy of its own first (copy-on-write).
"""

from collections.abc import Sequence as SequenceOf

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.sequence import Sequence


class BlockTables:
    """Invariant: a block that a step writes is held by the sequence that writes it and no other."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._copies: list[tuple[int, int]] = []

    def known_blocks(self, sequence: Sequence) -> list[int]:
        """Return the blocks of the longest prefix that may be taken from the cache."""
        # The last token is always computed, for its logits: its block must not come from the cache.
        block_size = self._blocks.block_size
        n_cacheable = (len(sequence) - 1) // block_size
        if sequence.sampling.prompt_logprobs is not None:
            # The cache keeps no logits.
            n_cacheable = min(n_cacheable, sequence.n_scored // block_size)
        return self._blocks.lookup(sequence.block_digests(n_cacheable, block_size=block_size))

    def open(self, sequence: Sequence, *, known: SequenceOf[int]) -> bool:
        """Hold blocks for all tokens so far, or nothing and return False."""
        n_new = self._blocks.n_blocks_for(len(sequence)) - len(known)
        table = self._blocks.claim(known=known, n_new=n_new)
        if table is None:
            return False
        self._blocks.tag(known, tags=sequence.cache_tags)
        sequence.block_table = table
        sequence.n_computed = len(known) * self._blocks.block_size
        sequence.n_registered = len(known)
        return True

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
