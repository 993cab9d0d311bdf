"""What one step runs, and what comes of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import force_setattr

from engine_service.errors import EngineError
from engine_service.protocol import FinishReason
from engine_service.scheduling.sequence import Sequence
from engine_service.scheduling.tiers import NO_TRANSFERS, Transfers


class Row(Struct, frozen=True, kw_only=True):
    """The ``n_new`` tokens of one sequence from place ``n_computed`` on.

    forks: those that start with this row: they take part in all that comes of it. draft: guesses
    behind the sequence's last token, the last of the row's tokens; logits are wanted at each.
    What follows from these: end: the place behind its last token. members: the sequence and those
    that start with it. is_sampled: the row reached the sequence's last token when it was made, so
    that its logits are wanted.
    """

    sequence: Sequence
    n_computed: int
    n_new: int
    forks: tuple[Sequence, ...] = ()
    draft: tuple[int, ...] = ()
    end: int = 0
    members: tuple[Sequence, ...] = ()
    is_sampled: bool = False

    def __post_init__(self) -> None:
        # A step asks some hundred rows for these several times.
        end = self.n_computed + self.n_new
        force_setattr(self, "end", end)
        force_setattr(self, "members", (self.sequence, *self.forks))
        force_setattr(self, "is_sampled", end >= len(self.sequence.token_ids))

    @property
    def token_ids(self) -> list[int]:
        known = self.sequence.token_ids[self.n_computed : self.end]
        return [*known, *self.draft] if self.draft else known

    @property
    def n_known(self) -> int:
        """Tokens of the sequence up to the row's end, its guesses not counted: the place of the
        first token that it gives."""
        return self.end - len(self.draft)

    @property
    def is_decode(self) -> bool:
        """True where one token is new, but for drafted ones."""
        return self.n_new == 1 + len(self.draft)

    @property
    def scored(self) -> range:
        """Places in the prompt whose logits are wanted, for what they say of the token after."""
        sequence = self.sequence
        if sequence.sampling.prompt_logprobs is None:
            return range(0)
        end = min(self.end, sequence.n_prompt - 1)
        return range(max(self.n_computed, sequence.n_scored), end)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step: those of a single token first, by length, so that a kernel may take
    neighbours of like length together; then the others.

    Before anything is computed, in this order, each pair from and to: spills, from blocks of the
    pool to host slots; copies, from blocks to blocks, none both; loads, from host slots to blocks.
    (A block may be spilled and then filled anew; and one that was copied and given up may be.)
    """

    rows: tuple[Row, ...]
    copies: tuple[tuple[int, int], ...] = ()
    spills: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls,
        rows: Iterable[Row],
        *,
        copies: tuple[tuple[int, int], ...] = (),
        transfers: Transfers = NO_TRANSFERS,
    ) -> "Batch":
        in_order = sorted(rows, key=lambda row: (row.n_new > 1, row.end))
        return cls(tuple(in_order), copies=copies, spills=transfers.spills, loads=transfers.loads)

    @property
    def n_tokens(self) -> int:
        return sum(row.n_new for row in self.rows)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """Sequences that get tokens from this step, in the order of their rows."""
        return tuple(sequence for row in self.rows if row.is_sampled for sequence in row.members)

    def logit_places(self) -> list[int]:
        """Return which tokens' logits are wanted, counting the tokens of all rows one after the
        other: first of the sampled rows, with their drafts, then the rows' ``scored`` ones."""
        sampled: list[int] = []
        scored: list[int] = []
        start = 0
        for row in self.rows:
            scored += [start + place - row.n_computed for place in row.scored]
            start += row.n_new
            if row.is_sampled:
                sampled += range(start - 1 - len(row.draft), start)
        return sampled + scored


class Advance(Struct, frozen=True, kw_only=True):
    """A sequence got tokens; ``finish_reason`` is set where the last of them ends it."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A sequence was given up; it has left the scheduler."""

    sequence: Sequence
    error: EngineError
