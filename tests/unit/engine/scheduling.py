"""A scheduler with a stand-in for the model, and the run of a random schedule through it."""

import random
from collections.abc import Sequence as SequenceOf
from typing import Any

from engine_service.protocol import NO_STANDING, SamplingParams, Standing
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.drafting import PromptLookup
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.tiers import Tiers

EOS = 9


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_scheduler(
    *, n_blocks: int = 8, block_size: int = 4, tiers: Tiers | None = None, **settings: Any
) -> Scheduler:
    defaults = {"max_sequences": 4, "max_batched_tokens": 8, "max_waiting": 100}
    return Scheduler(
        blocks=BlockManager(n_blocks=n_blocks, block_size=block_size, tiers=tiers),
        max_model_len=n_blocks * block_size,
        eos_token_ids=frozenset({EOS}),
        **{**defaults, **settings},
    )


def make_sequence(
    key: int,
    *,
    prompt: tuple[int, ...],
    max_new_tokens: int = 4,
    salt: str = "",
    tags: tuple[str, ...] = (),
    ignore_eos: bool = False,
    standing: Standing = NO_STANDING,
    n: int = 1,
) -> Sequence:
    leader, *forks = (
        Sequence(
            key=key,
            index=index,
            prompt_token_ids=prompt,
            sampling=SamplingParams(ignore_eos=ignore_eos, n=n),
            max_new_tokens=max_new_tokens,
            cache_salt=salt,
            cache_tags=tags,
            seed=0,
            standing=standing,
        )
        for index in range(n)
    )
    leader.lead(tuple(forks))
    return leader


def run_step(scheduler: Scheduler, *, token_id: int = 1) -> list[tuple[int, int, int]]:
    """Run a step that samples ``token_id`` everywhere; return key, n_computed, n_new by key."""
    batch = scheduler.schedule()
    rows = sorted((row.sequence.key, row.n_computed, row.n_new) for row in batch.rows)
    scheduler.update(batch, token_ids=[(token_id,)] * len(batch.sampled))
    return rows


def next_token(token_ids: list[int], *, index: int = 0) -> int:
    """A model that depends on everything before, and now and then ends; answers differ."""
    return (sum(token_ids) * 7 + len(token_ids) + index * 3) % 10


class OftenRight:
    """Guesses as the first answer goes on, with errors."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> list[int]:
        known = list(token_ids)
        for _ in range(self._rng.randint(0, max_tokens)):
            known.append(next_token(known) if self._rng.random() < 0.8 else self._rng.randrange(9))
        return known[len(token_ids) :]


def sample(batch: Batch) -> list[list[int]]:
    """Return what each of ``batch.sampled`` gets: drafted tokens while they are right, and one."""
    answers = []
    for row in batch.rows:
        for sequence in row.members if row.is_sampled else ():
            known = list(sequence.token_ids)
            for drafted in (*row.draft, None):
                known.append(next_token(known, index=sequence.index))
                if known[-1] != drafted:
                    break
            answers.append(known[len(sequence) :])
    return answers


class MemoryStore:
    """Stands in for host memory and disk: a slot holds a block as ``Pool`` has it.

    is_refusing, is_unreadable: whether the disk takes, and gives back, what is asked of it.
    """

    block_bytes = 100
    n_failed_writes = 0

    def __init__(self, *, n_host_slots: int, n_disk_slots: int = 0) -> None:
        self.n_host_slots = n_host_slots
        self.n_disk_slots = n_disk_slots
        self.host: dict[int, list[tuple[int, ...]]] = {}
        self.disk: dict[int, tuple[bytes, list[tuple[int, ...]]]] = {}
        self.is_refusing = lambda: False
        self.is_unreadable = lambda: False

    def write(self, host_slot: int, *, disk_slot: int, digest: bytes) -> bool:
        assert disk_slot < self.n_disk_slots
        if self.is_refusing():
            return False
        self.disk[disk_slot] = (digest, self.host[host_slot])
        return True

    def read(self, disk_slot: int, *, host_slot: int, digest: bytes) -> bool:
        assert host_slot < self.n_host_slots
        if self.is_unreadable():
            return False
        its_digest, self.host[host_slot] = self.disk[disk_slot]
        assert its_digest == digest
        return True

    def erase_host(self, slots: SequenceOf[int]) -> None:
        for slot in slots:
            self.host.pop(slot, None)

    def erase_disk(self, slots: SequenceOf[int]) -> None:
        for slot in slots:
            del self.disk[slot]


class Pool:
    """Stands in for the KV pool: a slot holds all tokens up to its own, as K and V do."""

    def __init__(self, block_size: int, *, store: MemoryStore | None = None) -> None:
        self._block_size = block_size
        self._store = store or MemoryStore(n_host_slots=0)
        self._slots: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, batch: Batch) -> None:
        """Copy and compute; what each row attends to must be that of its own tokens."""
        places = range(self._block_size)
        for block, host_slot in batch.spills:
            self._store.host[host_slot] = [self._slots[block, place] for place in places]
        for source, target in batch.copies:
            for place in places:
                if (source, place) in self._slots:
                    self._slots[target, place] = self._slots[source, place]
        for host_slot, block in batch.loads:
            for place in places:
                self._slots[block, place] = self._store.host[host_slot][place]
        for row in batch.rows:
            table, token_ids = row.sequence.block_table, [*row.sequence.token_ids, *row.draft]
            for position in range(row.end):
                slot = (table[position // self._block_size], position % self._block_size)
                if position >= row.n_computed:
                    self._slots[slot] = tuple(token_ids[: position + 1])
                assert self._slots[slot] == tuple(token_ids[: position + 1])


def check_batch(batch: Batch, scheduler: Scheduler) -> None:
    """Each computed token has a slot, and no slot is written by two sequences."""
    block_size = scheduler.blocks.block_size
    written: set[tuple[int, int]] = set()
    for row in batch.rows:
        assert row.n_new >= 1
        assert row.sequence.state is SequenceState.RUNNING
        assert row.n_computed == row.sequence.n_computed
        assert row.end <= len(row.sequence) + len(row.draft)
        assert not row.draft or (row.is_decode and row.is_sampled)
        assert len(row.draft) < max(1, row.sequence.max_new_tokens - row.sequence.n_generated)
        for position in range(row.n_computed, row.end):
            slot = (row.sequence.block_table[position // block_size], position % block_size)
            assert slot not in written
            written.add(slot)


def check_blocks(scheduler: Scheduler) -> None:
    """Blocks in tables and free ones are the pool; a shared one holds the same tokens for all."""
    block_size = scheduler.blocks.block_size
    content: dict[int, tuple[int, ...]] = {}
    for sequence in scheduler.running:
        assert sequence.n_computed < len(sequence)
        for index, block in enumerate(sequence.block_table):
            end = min((index + 1) * block_size, sequence.n_computed)
            upto = tuple(sequence.token_ids[:end])
            known = content.setdefault(block, upto)
            assert known[:end] == upto[: len(known)]
    assert scheduler.blocks.n_free + len(content) == scheduler.blocks.n_blocks


def run_random_schedule(
    rng: random.Random, *, store: MemoryStore | None = None, tiers: Tiers | None = None
) -> tuple[int, int, int]:
    """Run arrivals, aborts, deadlines, forks, drafts and preemptions to the end; return how many
    preemptions, block copies and accepted drafts there were. store, tiers: keep what is evicted.

    What must hold: each answer ends once, by itself as it would alone, and every block is free.
    """
    clock = Clock()
    n_blocks = rng.randint(5, 14)
    budget = rng.randint(4, 24)
    target_itl_s = rng.choice((None, 0.5, 2.0))
    scheduler = make_scheduler(
        n_blocks=n_blocks,
        max_batched_tokens=budget,
        tiers=tiers,
        target_itl_s=target_itl_s,
        make_proposer=rng.choice((None, lambda: OftenRight(rng), PromptLookup)),
        clock=clock,
    )
    pool = Pool(scheduler.blocks.block_size, store=store)
    n_copies = 0
    arrivals: dict[int, list[Sequence]] = {}
    abort_at: dict[int, int] = {}
    n_requests = rng.randint(1, 14)
    for key in range(n_requests):
        first = rng.randrange(3)
        prompt = tuple((first + i) % EOS for i in range(rng.randint(1, 14)))
        sequence = make_sequence(
            key,
            prompt=prompt,
            max_new_tokens=rng.randint(1, 6),
            standing=random_standing(rng),
            n=rng.choice((1, 1, 2, 3, 4)),
        )
        arrivals.setdefault(rng.randrange(13), []).append(sequence)
        abort_at[key] = rng.randrange(60)
    ends: dict[Sequence, str] = {}
    seen: list[Sequence] = []
    step = 0
    while step < 13 or scheduler.n_running or scheduler.n_waiting:
        for sequence in seen:
            has_output = sequence.n_generated > 0 and rng.random() < 0.5
            if abort_at[sequence.key] == step + sequence.index and has_output:
                scheduler.remove(sequence)
                ends.setdefault(sequence, "abort")
            elif abort_at[sequence.key] == step and sequence.leader is None:
                scheduler.remove_family(sequence)
                for member in sequence.family:
                    ends.setdefault(member, "abort")
        for sequence in arrivals.get(step, ()):
            scheduler.add(sequence)
            seen += sequence.family
        batch = scheduler.schedule()
        for failure in scheduler.take_failures():
            assert failure.error.to_wire().code == "deadline_exceeded"
            assert failure.sequence not in ends
            for member in failure.sequence.family:
                ends.setdefault(member, "deadline")
        assert batch.rows or not (scheduler.n_running or scheduler.n_waiting)
        assert batch.n_tokens <= budget
        assert scheduler.n_running <= 4
        check_batch(batch, scheduler)
        check_blocks(scheduler)
        pool.run(batch)
        n_copies += len(batch.copies)
        clock.now_s += rng.random() * 2
        for advance in scheduler.update(batch, token_ids=sample(batch)):
            if advance.finish_reason is not None:
                assert advance.sequence not in ends
                ends[advance.sequence] = advance.finish_reason
        for row in batch.rows:
            n_blocks_held = len(row.sequence.block_table)
            assert n_blocks_held <= scheduler.blocks.n_blocks_for(len(row.sequence))
        step += 1
        assert step < 2000, "the scheduler makes no progress"
    assert ends.keys() == set(seen)
    assert scheduler.blocks.n_free == n_blocks
    for sequence in seen:
        check_end(sequence, reason=ends[sequence])
    return scheduler.n_preemptions, n_copies, scheduler.speculation.n_accepted_tokens


def random_standing(rng: random.Random) -> Standing:
    return Standing(
        tenant=rng.choice("abc"),
        weight=rng.choice((0.5, 1.0, 4.0)),
        priority=rng.choice((0, 0, 0, 1, -1)),
        deadline_s=rng.choice((None, None, 8.0, 40.0)),
    )


def check_end(sequence: Sequence, *, reason: str) -> None:
    expected = list(sequence.token_ids[: sequence.n_prompt])
    while len(expected) < len(sequence):
        expected.append(next_token(expected, index=sequence.index))
    assert sequence.token_ids == expected
    assert sequence.block_table == []
    if reason in ("stop", "length"):
        assert reason == ("stop" if expected[-1] == EOS else "length")
        assert reason == "stop" or sequence.n_generated == sequence.max_new_tokens
