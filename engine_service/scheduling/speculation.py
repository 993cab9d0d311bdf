"""Lengthens the rows of a step by drafted tokens, as far as that pays and costs nobody a block."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from engine_service.scheduling.batch import Row
from engine_service.scheduling.block_tables import BlockTables
from engine_service.scheduling.drafting import MAX_DRAFT, Drafter, Proposer, StepCost


class Speculation:
    """Decides for all sequences of a scheduler; make_proposer: None turns it off. cost: is learnt
    by others.

    What penalties, masks and the like say of a token depends on those before it: a sequence that
    has a ``sampling_state`` is not drafted for.
    """

    def __init__(self, make_proposer: Callable[[], Proposer] | None, *, cost: StepCost) -> None:
        self.n_drafted_tokens = 0
        self.n_accepted_tokens = 0
        self._make_proposer = make_proposer
        self._cost = cost

    def lengthen(self, rows: SequenceOf[Row], *, tables: BlockTables, max_tokens: int) -> list[Row]:
        """Return the rows of decodes with their drafts, ``max_tokens`` of these at most."""
        if self._make_proposer is None:
            return list(rows)
        lengthened = []
        for row in rows:
            draft = self._draft(row, n_rows=len(rows), most=min(MAX_DRAFT, max_tokens))
            if draft:
                draft = draft[: tables.extend_freely(row.sequence, n_new=1 + len(draft)) - 1]
                max_tokens -= len(draft)
                row = replace(row, n_new=1 + len(draft), draft=draft)
            lengthened.append(row)
        return lengthened

    def count(self, *, n_drafted: int, n_accepted: int) -> None:
        self.n_drafted_tokens += n_drafted
        self.n_accepted_tokens += n_accepted

    def _draft(self, row: Row, *, n_rows: int, most: int) -> tuple[int, ...]:
        sequence = row.sequence
        most = min(most, sequence.max_new_tokens - sequence.n_generated - 1)
        if most < 1 or row.forks or sequence.sampling_state is not None:
            return ()
        if sequence.drafter is None and self._make_proposer is not None:
            sequence.drafter = Drafter(self._make_proposer())
        assert sequence.drafter is not None
        return sequence.drafter.draft(sequence.token_ids, cost=self._cost, n_rows=n_rows, most=most)
