"""A device without a model: it runs packed steps over a pool whose slots remember what they hold.

A slot holds all tokens up to its own, as K and V do, so that a read of anything else shows.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from engine_service.runner.step_packing import NO_SOURCE, TableMirror, is_decode, pack
from engine_service.scheduling.batch import Advance, Batch
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence
from tests.unit.engine.scheduling import MemoryStore, make_sequence, next_token

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeFlight:
    """places: which draw is a sequence's. drawn: what the device drew, guesses included."""

    batch: Batch
    places: dict[int, int]
    drawn: list[int]


class FakeDevice:
    """Computes a batch when it is launched, which is in the order of launches: nothing that the
    scheduler learns or gives away later reaches what was launched before."""

    def __init__(
        self, scheduler: Scheduler, *, max_sequences: int, store: MemoryStore | None
    ) -> None:
        self._store = store
        self._block_size = scheduler.blocks.block_size
        self._mirror = TableMirror(
            n_rows=max_sequences,
            max_blocks=scheduler.blocks.n_blocks,
            block_size=self._block_size,
        )
        self._tables: dict[int, int] = {}
        self._slots: dict[int, Tokens] = {}
        self._last_draws: list[int] = []

    def launch(self, batch: Batch, *, after: FakeFlight | None) -> FakeFlight:
        self._move(batch)
        sources = {} if after is None else after.places
        step = pack(
            batch,
            mirror=self._mirror,
            block_size=self._block_size,
            sources=sources,
            decodes=is_decode(batch, max_tokens=len(batch.rows)),
        )
        part = {
            name: step.numbers[start : start + length]
            for name, (start, length) in step.sections().items()
        }
        self._tables.update(zip(part["update_places"], part["update_blocks"], strict=True))
        starts = list(part.get("query_starts", range(step.n_rows + 1)))
        token_ids = list(part["token_ids"])
        for row, source in enumerate(part["sources"]):
            if source != NO_SOURCE:
                assert row < step.n_single
                token_ids[starts[row]] = self._last_draws[source]
        histories: list[list[Tokens]] = []
        for i, row in enumerate(batch.rows):
            places = range(starts[i], starts[i + 1])
            assert part["context_lens"][i] == row.end
            assert len(places) == row.n_new
            histories.append(
                self._compute(
                    part["table_rows"][i] * self._mirror.max_blocks,
                    token_ids=[token_ids[place] for place in places],
                    positions=[part["positions"][place] for place in places],
                    slots=[part["slots"][place] for place in places],
                    tells_slots=step.is_decode,
                )
            )
        return self._draw(batch, histories=histories)

    def content(self, block: int) -> list[Tokens]:
        first = block * self._block_size
        return [self._slots.get(slot, ()) for slot in range(first, first + self._block_size)]

    def _move(self, batch: Batch) -> None:
        if self._store is not None:
            self._store.host |= {slot: self.content(block) for block, slot in batch.spills}
        for target, content in {to: self.content(block) for block, to in batch.copies}.items():
            self._fill(target, content)
        for slot, block in batch.loads:
            assert self._store is not None
            self._fill(block, self._store.host[slot])

    def _fill(self, block: int, content: SequenceOf[Tokens]) -> None:
        first = block * self._block_size
        self._slots.update(zip(range(first, first + self._block_size), content, strict=True))

    def _compute(
        self,
        first_place: int,
        *,
        token_ids: SequenceOf[int],
        positions: SequenceOf[int],
        slots: SequenceOf[int],
        tells_slots: bool,
    ) -> list[Tokens]:
        """Return what each token sees, itself included; the row's tokens are at ``positions``."""
        size = self._block_size
        if tells_slots:
            self._tables[first_place + positions[0] // size] = slots[0] // size
        known: Tokens = ()
        for position in range(positions[0]):
            held = self._slots.get(self._slot(first_place, position), ())
            assert held[:-1] == known, f"position {position}: {held} stands behind {known}"
            known = held
        seen = []
        for token_id, position, slot in zip(token_ids, positions, slots, strict=True):
            assert token_id >= 0
            assert position == len(known)
            assert slot == self._slot(first_place, position)
            known = (*known, token_id)
            self._slots[slot] = known
            seen.append(known)
        return seen

    def _slot(self, first_place: int, position: int) -> int:
        block = self._tables[first_place + position // self._block_size]
        return block * self._block_size + position % self._block_size

    def _draw(self, batch: Batch, *, histories: SequenceOf[SequenceOf[Tokens]]) -> FakeFlight:
        drawn: list[int] = []
        places = {}
        for row, seen in zip(batch.rows, histories, strict=True):
            for sequence in row.members if row.is_sampled else ():
                places[id(sequence)] = len(drawn)
                for known in seen[len(seen) - 1 - len(row.draft) :]:
                    drawn.append(next_token(list(known), index=sequence.index))
        self._last_draws = drawn
        return FakeFlight(batch=batch, places=places, drawn=drawn)


class Overlapped:
    """Drives a scheduler and a device as the native backend does."""

    def __init__(
        self, scheduler: Scheduler, *, max_sequences: int = 4, store: MemoryStore | None = None
    ) -> None:
        self.scheduler = scheduler
        self.device = FakeDevice(scheduler, max_sequences=max_sequences, store=store)
        self.flight: FakeFlight | None = None

    def schedule(self) -> Batch:
        if self.flight is not None:
            self.scheduler.assume(self.flight.batch)
        return self.scheduler.schedule()

    def launch(self, batch: Batch) -> FakeFlight | None:
        """Return the flight that is now to be landed."""
        flight = self.flight
        self.flight = self.device.launch(batch, after=flight) if batch.rows else None
        return flight

    def land(
        self,
        flight: FakeFlight,
        *,
        lost: frozenset[Sequence] = frozenset(),
        step_s: float = 0.01,
    ) -> list[Advance]:
        """lost: whose logits are not finite."""
        batch, drawn = flight.batch, iter(flight.drawn)
        answers: list[list[int]] = []
        for row in batch.rows:
            for sequence in row.members if row.is_sampled else ():
                found = [next(drawn) for _ in range(1 + len(row.draft))]
                n_right = 0
                while n_right < len(row.draft) and found[n_right] == row.draft[n_right]:
                    n_right += 1
                answers.append([] if sequence in lost else found[: n_right + 1])
        for sequence in lost:
            if sequence.block_table or sequence in batch.sampled:
                self.scheduler.discard(sequence)
        return self.scheduler.update(batch, token_ids=answers, step_s=step_s)

    def step(self) -> list[Advance]:
        flight = self.launch(self.schedule())
        return [] if flight is None else self.land(flight)

    def check_findable(self) -> None:
        """What the prefix cache finds is computed, and of the tokens that it is found for."""
        blocks = self.scheduler.blocks
        for digest, block in blocks._block_of.items():
            content = self.device.content(block)
            assert [len(tokens) for tokens in content] == [
                len(content[-1]) - blocks.block_size + 1 + i for i in range(blocks.block_size)
            ]
            n_blocks = len(content[-1]) // blocks.block_size
            alone = make_sequence(0, prompt=content[-1])
            assert alone.block_digests(n_blocks, block_size=blocks.block_size)[-1] == digest
