"""What the KV pool evicts is kept below it, comes back as it was, and is forgotten on demand."""

import random
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.protocol import TierStats
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.tiers import Tiers
from tests.unit.engine.scheduling import (
    Clock,
    MemoryStore,
    Pool,
    check_blocks,
    make_scheduler,
    make_sequence,
    run_random_schedule,
    sample,
)

A, B, C = b"a", b"ab", b"abc"


def spilled(tiers: Tiers, *digests: bytes, tags: SequenceOf[str] = ()) -> list[tuple[int, int]]:
    for block, digest in enumerate(digests):
        tiers.spill(block, digest=digest, tags=tags)
    return list(tiers.take().spills)


def filled(store: MemoryStore, spills: SequenceOf[tuple[int, int]], *contents: str) -> None:
    for (_, slot), content in zip(spills, contents, strict=True):
        store.host[slot] = [tuple(map(ord, content))]


# -- random schedules --------------------------------------------------------------------------


def random_tiers(rng: random.Random) -> tuple[MemoryStore, Tiers]:
    """Of few slots, over a disk that now and then refuses or loses a block, or is slow."""
    store = MemoryStore(n_host_slots=rng.randint(1, 4), n_disk_slots=rng.choice((0, 2, 9, 20)))
    store.is_refusing = lambda: rng.random() < 0.1
    store.is_unreadable = lambda: rng.random() < 0.3
    return store, Tiers(store, max_read_s=1.0, clock=lambda: rng.random() * 2)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_random_schedule_reads_what_was_computed(seed: int) -> None:
    rng = random.Random(seed)
    store, tiers = random_tiers(rng)
    run_random_schedule(rng, store=store, tiers=tiers)
    check_store(store, tiers)


def check_store(store: MemoryStore, tiers: Tiers) -> None:
    stats = tiers.stats()
    assert stats.host_bytes <= stats.host_bytes_total == store.n_host_slots * 100
    assert stats.disk_bytes <= stats.disk_bytes_total == store.n_disk_slots * 100
    assert stats.disk_bytes == 100 * len(store.disk)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_steps_that_fail_and_purges_leave_nothing_wrong(seed: int) -> None:
    run_with_failures(random.Random(seed))


def test_these_schedules_use_the_tiers() -> None:
    runs = [run_with_failures(random.Random(seed)) for seed in range(40)]
    for name in ("n_host_hits", "n_disk_hits", "n_unreadable", "n_dropped", "n_disk_evictions"):
        assert sum(getattr(stats, name) > 0 for stats in runs) >= 3, name


def run_with_failures(rng: random.Random) -> TierStats:
    """Each step may raise before or after it moved anything; a purged tenant is found no more."""
    store, tiers = random_tiers(rng)
    scheduler = make_scheduler(n_blocks=rng.randint(4, 8), tiers=tiers)
    pool = Pool(scheduler.blocks.block_size, store=store)
    for key in range(40):
        tenant = rng.choice("ab")
        first = rng.randrange(2)
        prompt = tuple((first + i) % 9 for i in range(rng.randint(1, 12)))
        scheduler.add(make_sequence(key, prompt=prompt, salt=tenant, tags=(tenant,)))
        for _ in range(rng.randint(1, 8)):
            batch = scheduler.schedule()
            if rng.random() < 0.15:
                fail(scheduler, batch)
                continue
            pool.run(batch)
            if rng.random() < 0.1:
                fail(scheduler, batch)
            elif batch.rows:
                scheduler.update(batch, token_ids=sample(batch))
            check_blocks(scheduler)
        if rng.random() < 0.15:
            purge_and_check(scheduler, tenant)
        check_store(store, tiers)
    return tiers.stats()


def fail(scheduler: Scheduler, batch: Batch) -> None:
    suspects = [row.sequence for row in batch.rows] + scheduler.distrust([batch])
    for sequence in suspects:
        if sequence.state is not SequenceState.FINISHED:
            scheduler.remove_family(sequence)


def purge_and_check(scheduler: Scheduler, tenant: str) -> None:
    scheduler.blocks.purge_tiers(tenant)
    scheduler.blocks.purge(tenant)
    for first in range(2):
        prompt = tuple((first + i) % 9 for i in range(13))
        digests = make_sequence(0, prompt=prompt, salt=tenant).block_digests(3, block_size=4)
        assert scheduler.blocks.lookup(digests) == []
        assert scheduler.blocks.tiers is not None
        assert scheduler.blocks.tiers.known(digests) == []


# -- one rule at a time ------------------------------------------------------------------------


def test_a_preempted_sequence_comes_back_from_host_memory() -> None:
    """Its full blocks are taken from it by another, and are not computed again."""
    store = MemoryStore(n_host_slots=8)
    tiers = Tiers(store)
    scheduler = make_scheduler(n_blocks=6, tiers=tiers, max_batched_tokens=16)
    pool = Pool(4, store=store)
    first, second = (
        make_sequence(
            key,
            prompt=tuple(range(key, key + 8)),
            max_new_tokens=12,
            salt=str(key),
            ignore_eos=True,
        )
        for key in range(2)
    )
    scheduler.add(first)
    scheduler.add(second)
    n_recomputed = 0
    while first.state is not SequenceState.FINISHED or second.state is not SequenceState.FINISHED:
        n_preempted = scheduler.n_preemptions
        batch = scheduler.schedule()
        pool.run(batch)
        if n_preempted:
            n_recomputed += sum(row.n_new - 1 for row in batch.rows if row.sequence is second)
        scheduler.update(batch, token_ids=sample(batch))
    assert scheduler.n_preemptions == 1
    assert tiers.stats().n_host_hits >= 2
    assert n_recomputed < 4  # what its last block had, which was not full


def test_the_least_recently_used_goes_to_disk_and_comes_back_through_host_memory() -> None:
    store = MemoryStore(n_host_slots=2, n_disk_slots=2)
    tiers = Tiers(store)
    filled(store, spilled(tiers, A, B), "a", "b")
    tiers.hold((A,))
    tiers.take()
    filled(store, spilled(tiers, C), "c")
    assert {digest for digest, _ in store.disk.values()} == {B}
    assert tiers.known((A, B, C)) == [A, B, C]
    assert tiers.load(B, block=7, tags=())
    ((slot, block),) = tiers.take().loads
    assert (store.host[slot], block) == ([(ord("b"),)], 7)
    (arrival,) = tiers.settle()
    assert (arrival.block, arrival.digest) == (7, B)
    stats = tiers.stats()
    assert (stats.n_host_hits, stats.n_disk_hits, stats.n_written) == (0, 1, 2)
    assert (stats.host_bytes, stats.disk_bytes) == (200, 200)


def test_what_the_coming_step_moves_keeps_its_slot() -> None:
    store = MemoryStore(n_host_slots=1, n_disk_slots=1)
    tiers = Tiers(store)
    tiers.spill(0, digest=A, tags=())
    tiers.spill(1, digest=B, tags=())
    assert tiers.stats().n_dropped == 1
    ((_, slot),) = tiers.take().spills
    store.host[slot] = [(1,)]
    assert tiers.load(A, block=5, tags=())
    tiers.spill(2, digest=C, tags=())
    assert (tiers.stats().n_dropped, store.disk) == (2, {})
    assert tiers.take().loads == ((slot, 5),)
    tiers.spill(2, digest=C, tags=())
    assert tiers.take().spills == ((2, slot),)


def test_what_is_about_to_be_read_keeps_its_place_on_disk() -> None:
    store = MemoryStore(n_host_slots=1, n_disk_slots=1)
    tiers = Tiers(store)
    filled(store, spilled(tiers, A), "a")
    filled(store, spilled(tiers, B), "b")
    tiers.hold((A,))
    assert tiers.load(A, block=3, tags=())  # B has no place any more
    ((slot, _),) = tiers.take().loads
    assert (store.host[slot], tiers.known((B,))) == ([(ord("a"),)], [])
    assert tiers.stats().n_dropped == 1


def test_who_counts_on_what_a_failed_step_was_to_load_is_named() -> None:
    """The second is admitted and has its prefix loaded, though the step has no tokens for it."""
    store = MemoryStore(n_host_slots=4)
    tiers = Tiers(store)
    scheduler = make_scheduler(n_blocks=12, tiers=tiers)
    first = make_sequence(1, prompt=tuple(range(12)))
    second = make_sequence(2, prompt=tuple(range(20, 44)))
    filled(store, spilled(tiers, *second.block_digests(2, block_size=4)), "ab", "cd")
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    assert ([row.sequence for row in batch.rows], len(batch.loads)) == ([first], 2)
    assert scheduler.distrust([batch]) == [second]
    scheduler.update(batch, token_ids=[])
    assert scheduler.distrust([batch]) == []


def test_a_disk_that_takes_nothing_drops_what_host_memory_evicts() -> None:
    store = MemoryStore(n_host_slots=1, n_disk_slots=1)
    store.is_refusing = lambda: True
    tiers = Tiers(store)
    filled(store, spilled(tiers, A), "a")
    filled(store, spilled(tiers, B), "b")
    assert (tiers.known((A,)), tiers.known((B,))) == ([], [B])
    assert (tiers.stats().n_dropped, tiers.stats().n_written) == (1, 0)


def test_an_unreadable_block_is_forgotten_and_its_slot_erased() -> None:
    store = MemoryStore(n_host_slots=1, n_disk_slots=1)
    tiers = Tiers(store)
    filled(store, spilled(tiers, A), "a")
    filled(store, spilled(tiers, B), "b")
    store.is_unreadable = lambda: True
    assert not tiers.load(A, block=3, tags=())
    assert tiers.known((A,)) == []
    assert (store.host, tiers.take().loads, tiers.settle()) == ({}, (), [])
    assert tiers.stats().n_unreadable == 1


def test_a_step_reads_the_disk_for_so_long_and_no_longer() -> None:
    clock = Clock()
    store = MemoryStore(n_host_slots=3, n_disk_slots=3)

    def is_unreadable() -> bool:
        clock.now_s += 0.6
        return False

    store.is_unreadable = is_unreadable
    tiers = Tiers(store, max_read_s=1.0, clock=clock)
    filled(store, spilled(tiers, A, B, C), "a", "b", "c")
    filled(store, spilled(tiers, b"x", b"y", b"z"), "x", "y", "z")
    tiers.hold((A, B, C))
    assert [tiers.load(d, block=i, tags=()) for i, d in enumerate((A, B, C))] == [True, True, False]
    tiers.take()
    assert tiers.load(C, block=2, tags=())


@pytest.mark.parametrize("finder_is_purged", [True, False])
def test_what_one_left_and_another_found_is_forgotten_with_either(finder_is_purged: bool) -> None:
    store = MemoryStore(n_host_slots=4)
    tiers = Tiers(store)
    scheduler = make_scheduler(n_blocks=3, tiers=tiers)
    pool = Pool(4, store=store)

    def run(key: int, tag: str, first: int) -> Sequence:
        sequence = make_sequence(
            key, prompt=tuple(range(first, first + 9)), max_new_tokens=1, tags=(tag,)
        )
        scheduler.add(sequence)
        while sequence.state is not SequenceState.FINISHED:
            batch = scheduler.schedule()
            pool.run(batch)
            scheduler.update(batch, token_ids=sample(batch))
        return sequence

    run(1, "ann", 0)
    run(2, "other", 20)
    assert run(3, "bob", 0).n_cached == 8
    # Now the pool has it again, and what is below may be gone when it comes to the purge.
    scheduler.blocks.tiers.forget(
        make_sequence(0, prompt=tuple(range(9))).block_digests(2, block_size=4)
    )
    tag = "bob" if finder_is_purged else "ann"
    assert scheduler.blocks.purge_tiers(tag) == 0
    assert len(scheduler.blocks.purge(tag)) == 2
    assert run(4, "bob", 0).n_cached == 0


def test_a_purge_forgets_what_only_the_tiers_keep_and_counts_it() -> None:
    store = MemoryStore(n_host_slots=1, n_disk_slots=4)
    tiers = Tiers(store)
    filled(store, spilled(tiers, A, tags=("ann", "acme")), "a")
    filled(store, spilled(tiers, B, tags=("bob", "acme")), "b")
    assert tiers.purge("ann", digests={C}) == {A}
    assert (store.disk, len(store.host)) == ({}, 1)
    assert tiers.purge("ann", digests=set()) == set()
    assert tiers.purge("acme", digests=set()) == {B}
    assert store.host == {}


def test_a_block_that_is_being_filled_is_not_found_after_a_purge() -> None:
    store = MemoryStore(n_host_slots=2)
    tiers = Tiers(store)
    filled(store, spilled(tiers, A, tags=("ann",)), "a")
    assert tiers.load(A, block=1, tags=("bob",))
    assert len(tiers.take().loads) == 1
    assert tiers.purge("ann", digests=set()) == {A}
    assert tiers.settle() == []
