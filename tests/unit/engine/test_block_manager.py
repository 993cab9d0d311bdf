"""The block manager neither loses a block nor gives one to two owners, whatever the order."""

from collections import Counter, defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_service.scheduling.block_manager import BlockManager

N_BLOCKS = 6
TAGS = st.lists(st.sampled_from(["tenant", "ann", "bob"]), max_size=2)


class BlockManagerMachine(RuleBasedStateMachine):
    """Tables of blocks are claimed, tagged, registered, purged and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(n_blocks=N_BLOCKS, block_size=4)
        self.tables: list[list[int]] = []
        self.digest_of: dict[int, bytes] = {}
        self.tags_of: dict[int, set[str]] = defaultdict(set)

    @rule(
        digests=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=3, unique=True),
        n_new=st.integers(0, 4),
        tags=TAGS,
    )
    def claim(self, digests: list[bytes], n_new: int, tags: list[str]) -> None:
        known = self.manager.lookup(digests)
        assert [self.digest_of[block] for block in known] == digests[: len(known)]
        held = {block for table in self.tables for block in table}
        n_available = N_BLOCKS - len(held | set(known))
        table = self.manager.claim(known=known, n_new=n_new)
        if n_new > n_available:
            assert table is None
            return
        assert table is not None
        assert table[: len(known)] == known
        new = table[len(known) :]
        assert len(set(new)) == n_new
        assert not set(new) & (held | set(known)), "a block was given to a second owner"
        for block in new:
            self.unregister(block)
        self.manager.tag(known, tags=tags)
        for block in known:
            self.tags_of[block].update(tags)
        self.tables.append(table)

    def unregister(self, block: int) -> None:
        self.digest_of.pop(block, None)
        self.tags_of.pop(block, None)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), digest=st.sampled_from([b"a", b"b", b"c", b"d"]), tags=TAGS)
    def register(self, data: st.DataObject, digest: bytes, tags: list[str]) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        block = data.draw(st.sampled_from(table))
        if block not in self.digest_of and digest not in self.digest_of.values():
            self.digest_of[block] = digest
        for findable, its_digest in self.digest_of.items():
            if its_digest == digest:
                self.tags_of[findable].update(tags)
        self.manager.register(block, digest=digest, tags=tags)

    @rule(tag=st.sampled_from(["tenant", "ann", "bob"]))
    def purge(self, tag: str) -> None:
        expected = sorted(block for block, tags in self.tags_of.items() if tag in tags)
        assert self.manager.purge(tag) == expected
        for block in expected:
            self.unregister(block)
        assert self.manager.purge(tag) == []

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.manager.release(self.tables.pop(index))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.manager.forget(table)
        for block in table:
            self.unregister(block)

    @invariant()
    def counts_are_exact(self) -> None:
        held = Counter(block for table in self.tables for block in table)
        assert self.manager.n_free == N_BLOCKS - len(held)
        assert self.manager.n_cached == len(self.digest_of)
        for block, digest in self.digest_of.items():
            assert self.manager.lookup([digest]) == [block]

    def teardown(self) -> None:
        for table in self.tables:
            self.manager.release(table)
        assert self.manager.n_free == N_BLOCKS
        assert self.manager.claim(known=(), n_new=N_BLOCKS) is not None
        assert self.manager.n_cached == 0
        assert [self.manager.purge(tag) for tag in ("tenant", "ann", "bob")] == [[], [], []]


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_blank_blocks_go_first_then_the_least_recently_released_end_of_a_prefix() -> None:
    manager = BlockManager(n_blocks=4, block_size=4)
    table = manager.claim(known=(), n_new=3)
    assert table is not None
    for block, digest in zip(table, (b"a", b"ab", b"abc"), strict=True):
        manager.register(block, digest=digest)
    manager.release(table)
    assert manager.n_free == 4
    assert manager.claim(known=(), n_new=2) is not None  # the blank one and the prefix's end
    assert manager.lookup([b"a", b"ab", b"abc"]) == table[:2]


def test_releasing_a_free_block_is_an_error() -> None:
    manager = BlockManager(n_blocks=2, block_size=4)
    with pytest.raises(RuntimeError, match="released more often than held"):
        manager.release([1])


def test_whole_blocks_for_tokens() -> None:
    manager = BlockManager(n_blocks=2, block_size=16)
    assert [manager.n_blocks_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]
