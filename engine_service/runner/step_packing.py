"""Packs a batch for a device: every number of a step in one array, so that one copy brings them.

The device keeps a copy of every block table and hears only of what changes in it.
"""

from array import array
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from engine_service.runner.sample_row import is_drawn, uniform
from engine_service.scheduling.batch import Batch, Row
from engine_service.scheduling.sequence import ASSUMED_TOKEN, Sequence, SequenceState

_NO_SLOT: Final = -1
NO_SOURCE: Final = -1
_ALIGNMENT: Final = 4  # numbers of 4 bytes
_DECODE_SECTIONS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedStep:
    """The sections of ``numbers``, int32, in this order; n_rows and n_tokens count padding.

    A row is what a step has of one sequence; where that ``is_decode``, one token of it. Of each
    token: its id, its position, its slot in the pool (-1: none). Of each row: which of the last
    step's draws is its only token (-1: none, the id above holds), its row among the device's block
    tables, its context.
    Then, where each row is one token whose logits are wanted (``is_decode``): of each a float64 in
    [0, 1) and a float32 temperature, from which tokens may be drawn; zeros where they are drawn
    otherwise. Else: where rows begin (n_rows + 1), and which tokens' logits are wanted.
    Then what changes in the tables, first the places, then the blocks: what this step needs and
    ``is_decode`` does not say itself, which is the block of each row's slot.

    draws_plainly: the numbers to draw by are there, and are all that the draws depend on.
    n_single: so many rows come first that have one token each. max_query_len: most tokens of one
    of the others. max_context_len: of any row.
    """

    n_tokens: int
    n_rows: int
    n_single: int
    n_logits: int
    n_updates: int
    max_query_len: int
    max_context_len: int
    is_decode: bool
    draws_plainly: bool
    numbers: "array[int]"

    def sections(self) -> dict[str, tuple[int, int]]:
        """Return where each section begins and how long it is."""
        per_token = [("token_ids", self.n_tokens), ("positions", self.n_tokens)]
        per_token += [("slots", self.n_tokens)]
        per_row = [(name, self.n_rows) for name in ("sources", "table_rows", "context_lens")]
        logits = [("query_starts", self.n_rows + 1), ("logit_places", self.n_logits)]
        updates = [(name, self.n_updates) for name in ("update_places", "update_blocks")]
        sections, start = {}, 0
        for name, length in (*per_token, *per_row, *([] if self.is_decode else logits)):
            sections[name] = (start, length)
            start += length if self.is_decode else aligned(length)
        if self.is_decode:
            start = decode_length(self.n_rows)
        for name, length in updates:
            sections[name] = (start, length)
            start += aligned(length)
        return sections

    @property
    def takes_draws(self) -> bool:
        """True where a token is one that the last step drew."""
        start, length = self.sections()["sources"]
        return any(source != NO_SOURCE for source in self.numbers[start : start + length])


def joined(sections: Iterable[SequenceOf[int]]) -> "array[int]":
    """Return the numbers of sections, each of which begins where it is ``aligned``."""
    numbers = array("i")
    for section in sections:
        numbers.extend(section)
        numbers.extend([0] * (aligned(len(section)) - len(section)))
    return numbers


def draws_start(n_rows: int) -> int:
    """Return where the numbers to draw by begin in a step that ``is_decode``."""
    return aligned(_DECODE_SECTIONS * n_rows)


def decode_length(n_rows: int) -> int:
    """Return how many integers a step that ``is_decode`` has before what changes in the tables."""
    return draws_start(n_rows) + aligned(3 * n_rows)


def aligned(length: int) -> int:
    """Return the numbers that a section takes where each begins at a multiple of 16 bytes: kernels
    are compiled anew for addresses that are none."""
    return -(-length // _ALIGNMENT) * _ALIGNMENT


class TableMirror:
    """Says which row of the device's block tables is whose, and what is not there yet.

    A table changes at its end, or as a whole, and then it is another list; and a block that is
    about to be written may have been changed for a copy of its own. n_rows: most sequences that
    run at a time.
    """

    def __init__(self, *, n_rows: int, max_blocks: int, block_size: int) -> None:
        self.padding_row = n_rows
        self.max_blocks = max_blocks
        self._block_size = block_size
        self._free = list(range(n_rows - 1, -1, -1))
        self._mirrored: dict[int, _Mirrored] = {}

    def place(self, row: Row) -> tuple[int, int]:
        """Return the sequence's row there, and from which of its blocks on the device must be told
        about those that this step reads and writes; they are taken as told."""
        sequence = row.sequence
        mirrored = self._mirrored.get(id(sequence))
        if mirrored is None:
            mirrored = self._mirrored[id(sequence)] = _Mirrored(sequence, self._take_row())
        first = row.n_computed // self._block_size
        is_known = mirrored.table is sequence.block_table
        start = min(mirrored.n_known, first) if is_known else 0
        mirrored.table = sequence.block_table
        mirrored.n_known = -(-row.end // self._block_size)
        return mirrored.row, start

    def _take_row(self) -> int:
        if not self._free:
            gone = [
                key
                for key, each in self._mirrored.items()
                if each.sequence.state is not SequenceState.RUNNING
            ]
            self._free = [self._mirrored.pop(key).row for key in gone]
        return self._free.pop()


@dataclass(slots=True)
class _Mirrored:
    sequence: Sequence
    row: int
    table: list[int] | None = None
    n_known: int = 0


def is_decode(batch: Batch, *, max_tokens: int) -> bool:
    """Return whether the logits of each token are wanted, once, and there are not too many: a token
    of each row and the guesses behind it."""
    return (
        all(
            row.is_decode and row.is_sampled and not row.forks and not row.scored
            for row in batch.rows
        )
        and batch.n_tokens <= max_tokens
    )


def pack(
    batch: Batch,
    *,
    mirror: TableMirror,
    block_size: int,
    sources: Mapping[int, int],
    decodes: bool,
    pad_to: int = 0,
) -> PackedStep:
    """Pack a batch. sources: by ``id`` of a sequence which of the last draws is the token that it
    assumes. decodes: as a step that ``is_decode``, which it is. pad_to: then so many rows, those
    that are added read and write nothing.
    """
    packing = _Packing(mirror, block_size=block_size, sources=sources, tells_slots=decodes)
    n_single = 0
    for row in batch.rows:
        n_single += row.n_new if decodes else row.n_new == 1
        packing.add(row)
    n_rows = len(packing.context_lens)
    if decodes:
        packing.pad(pad_to)
    logit_places = [] if decodes else batch.logit_places()
    updates = joined([packing.update_places, packing.update_blocks])
    if decodes:
        numbers = joined([list(chain(*packing.per_token(), *packing.per_row()))])
        numbers.extend(packing.draws(batch, n_rows=len(packing.context_lens)))
    else:
        sections = [*packing.per_token(), *packing.per_row(), packing.query_starts, logit_places]
        numbers = joined(sections)
    return PackedStep(
        n_tokens=len(packing.token_ids),
        n_rows=len(packing.context_lens),
        n_single=n_single,
        n_logits=n_rows if decodes else len(logit_places),
        n_updates=len(packing.update_places),
        max_query_len=1 if decodes else max((row.n_new for row in batch.rows), default=0),
        max_context_len=max((row.end for row in batch.rows), default=0),
        is_decode=decodes,
        draws_plainly=decodes and packing.draws_plainly,
        numbers=numbers + updates,
    )


class _Packing:
    def __init__(
        self,
        mirror: TableMirror,
        *,
        block_size: int,
        sources: Mapping[int, int],
        tells_slots: bool,
    ) -> None:
        self._mirror = mirror
        self._block_size = block_size
        self._sources = sources
        self._tells_slots = tells_slots
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.sources: list[int] = []
        self.table_rows: list[int] = []
        self.context_lens: list[int] = []
        self.query_starts: list[int] = [0]
        self.update_places: list[int] = []
        self.update_blocks: list[int] = []
        self.draws_plainly = True

    def add(self, row: Row) -> None:
        table_row, start = self._mirror.place(row)
        table, size = row.sequence.block_table, self._block_size
        place = row.n_computed
        if row.n_new == 1:
            token_id = row.sequence.token_ids[place]
            self.token_ids.append(max(token_id, 0))
            self.positions.append(place)
            self.slots.append(table[place // size] * size + place % size)
            assumes = token_id == ASSUMED_TOKEN
            self.sources.append(self._sources[id(row.sequence)] if assumes else NO_SOURCE)
        else:
            places = range(place, row.end)
            self.token_ids += row.token_ids
            self.positions += places
            blocks = table[place // size : -(-row.end // size)]
            slots = chain.from_iterable(range(block * size, (block + 1) * size) for block in blocks)
            self.slots += islice(slots, place % size, place % size + row.n_new)
            self.sources += [NO_SOURCE] * (row.n_new if self._tells_slots else 1)
        self.draws_plainly = self.draws_plainly and row.sequence.draws_plainly
        if self._tells_slots and row.n_new > 1:
            self.table_rows += [table_row] * row.n_new
            self.context_lens += range(place + 1, row.end + 1)
        else:
            self.table_rows.append(table_row)
            self.context_lens.append(row.end)
        self.query_starts.append(self.query_starts[-1] + row.n_new)
        end = place // size if self._tells_slots else -(-row.end // size)
        if start < end:
            first = table_row * self._mirror.max_blocks
            self.update_places += range(first + start, first + end)
            self.update_blocks += table[start:end]

    def pad(self, n_rows: int) -> None:
        n_lacking = n_rows - len(self.context_lens)
        if n_lacking > 0:
            self.token_ids += [0] * n_lacking
            self.positions += [0] * n_lacking
            self.slots += [_NO_SLOT] * n_lacking
            self.sources += [NO_SOURCE] * n_lacking
            self.table_rows += [self._mirror.padding_row] * n_lacking
            self.context_lens += [0] * n_lacking

    def draws(self, batch: Batch, *, n_rows: int) -> "array[int]":
        """Return what to draw by, where that is all that draws depend on."""
        numbers = array("i")
        uniforms, temperatures = [0.0] * n_rows, [0.0] * n_rows
        if self.draws_plainly:
            drawn = [(row.sequence, n_ahead) for row in batch.rows for n_ahead in range(row.n_new)]
            for i, (sequence, n_ahead) in enumerate(drawn):
                if is_drawn(sequence.sampling):  # of the best token alone no number is needed
                    position = sequence.n_generated + n_ahead
                    uniforms[i] = uniform(sequence.seed, position=position)
                    temperatures[i] = sequence.sampling.temperature
        numbers.frombytes(array("d", uniforms).tobytes())
        numbers.frombytes(array("f", temperatures).tobytes())
        numbers.extend([0] * (aligned(len(numbers)) - len(numbers)))
        return numbers

    def per_token(self) -> SequenceOf[list[int]]:
        return (self.token_ids, self.positions, self.slots)

    def per_row(self) -> SequenceOf[list[int]]:
        return (self.sources, self.table_rows, self.context_lens)
