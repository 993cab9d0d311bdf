"""Lengthens the rows of a step by drafted tokens, as far as that pays and costs nobody a block."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from msgspec.structs import replace

from engine_service.scheduling.batch import Row
from engine_service.scheduling.block_tables import BlockTables
from engine_service.scheduling.drafting import MAX_DRAFT, Drafter, Proposer, StepCost
from engine_service.scheduling.masked_drafting import proposers


class Speculation:
    """Decides for all sequences of a scheduler; make_proposer: None turns it off. cost: is learnt
    by others.

    What penalties say of a token depends on those before it: a sequence that has some is not
    drafted for. One that has a mask gets guesses that the mask allows, and first of all what it
    leaves no choice about.
    """

    def __init__(self, make_proposer: Callable[[], Proposer] | None, *, cost: StepCost) -> None:
        self.n_drafted_tokens = 0
        self.n_accepted_tokens = 0
        self._make_proposer = make_proposer
        self._cost = cost

    def draft(self, rows: SequenceOf[Row], *, max_tokens: int) -> list[tuple[int, ...]]:
        """Return what follows the newest token of each row, ``max_tokens`` guesses at most."""
        if self._make_proposer is None:
            return [()] * len(rows)
        drafts = []
        for row in rows:
            draft = self._draft(row, n_rows=len(rows), most=min(MAX_DRAFT, max_tokens))
            max_tokens -= len(draft)
            drafts.append(draft)
        return drafts

    def count(self, *, n_drafted: int, n_accepted: int) -> None:
        self.n_drafted_tokens += n_drafted
        self.n_accepted_tokens += n_accepted

    def _draft(self, row: Row, *, n_rows: int, most: int) -> tuple[int, ...]:
        sequence = row.sequence
        most = min(most, sequence.max_new_tokens - sequence.n_generated - 1)
        state = sequence.sampling_state
        if most < 1 or row.forks or (state is not None and state.counts_tokens):
            return ()
        if not sequence.drafters and self._make_proposer is not None:
            sequence.drafters = tuple(map(Drafter, proposers(self._make_proposer(), state=state)))
        for drafter in sequence.drafters:
            draft = drafter.draft(sequence.token_ids, cost=self._cost, n_rows=n_rows, most=most)
            if draft:
                return draft
        return ()


def lengthen(row: Row, *, draft: tuple[int, ...], tables: BlockTables) -> Row:
    """Return the row with as much of its draft as free blocks allow."""
    if not draft:
        return row
    draft = draft[: tables.extend_freely(row.sequence, n_new=1 + len(draft)) - 1]
    return replace(row, n_new=1 + len(draft), draft=draft)
