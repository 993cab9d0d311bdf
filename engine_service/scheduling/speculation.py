"""Lengthens the rows of a step by drafted tokens, as far as that pays and costs nobody a block."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Final

from msgspec.structs import replace

from engine_service.scheduling.batch import Row
from engine_service.scheduling.block_tables import BlockTables
from engine_service.scheduling.drafting import MAX_DRAFT, Drafter, Proposer, StepCost
from engine_service.scheduling.masked_drafting import ForcedTokens, proposers
from engine_service.scheduling.model_drafting import DraftModelUse, ModelDrafter
from engine_service.scheduling.sequence import ASSUMED_TOKEN, Sequence

# Schedules in a row without a draft after which steps may overlap, and those that then may.
_N_IDLE: Final = 4
_N_ASSUMED: Final = 32


class Speculation:
    """Decides for all sequences of a scheduler. make_proposer or a draft model; None of either
    turns it off. cost: is learnt by others.

    What penalties say of a token depends on those before it: a sequence that has some is not
    drafted for. One that has a mask gets guesses that the mask allows, and first of all what it
    leaves no choice about.
    """

    def __init__(
        self,
        make_proposer: Callable[[], Proposer] | None,
        *,
        cost: StepCost,
        draft_model: DraftModelUse | None = None,
    ) -> None:
        self.n_drafted_tokens = 0
        self.n_accepted_tokens = 0
        self._make_proposer = make_proposer
        self._draft_model = draft_model
        self._cost = cost
        self._n_idle = 0

    @property
    def may_assume(self) -> bool:
        """Whether the next step may be scheduled before the newest tokens are known: nothing would
        be drafted behind them. Now and then it says no although nothing was, so as to see."""
        if self._is_off:
            return True
        return self._n_idle % (_N_IDLE + _N_ASSUMED) >= _N_IDLE

    def draft(self, rows: SequenceOf[Row], *, max_tokens: int) -> list[tuple[int, ...]]:
        """Return what follows the newest token of each row, ``max_tokens`` guesses at most."""
        if self._is_off:
            return [()] * len(rows)
        drafts = []
        for row in rows:
            draft = self._draft(row, n_rows=len(rows), most=min(MAX_DRAFT, max_tokens))
            max_tokens -= len(draft)
            drafts.append(draft)
        self._n_idle = 0 if any(drafts) else self._n_idle + 1
        return drafts

    def count(self, row: Row, *, n_accepted: int) -> None:
        """Take note of how many of a row's guesses were right."""
        self.n_drafted_tokens += len(row.draft)
        self.n_accepted_tokens += n_accepted
        for drafter in row.sequence.drafters:
            if isinstance(drafter, ModelDrafter):
                drafter.checked(n_drafted=len(row.draft), n_accepted=n_accepted)

    @property
    def _is_off(self) -> bool:
        return self._make_proposer is None and self._draft_model is None

    def _draft(self, row: Row, *, n_rows: int, most: int) -> tuple[int, ...]:
        sequence = row.sequence
        most = min(most, sequence.max_new_tokens - sequence.n_generated - 1)
        state = sequence.sampling_state
        if most < 1 or row.forks or (state is not None and state.counts_tokens):
            return ()
        if sequence.token_ids[-1] == ASSUMED_TOKEN:
            return ()
        if not sequence.drafters:
            sequence.drafters = tuple(self._drafters(sequence))
        for drafter in sequence.drafters:
            draft = drafter.draft(sequence.token_ids, cost=self._cost, n_rows=n_rows, most=most)
            if draft:
                return draft
        return ()

    def _drafters(self, sequence: Sequence) -> list[Drafter | ModelDrafter]:
        state = sequence.sampling_state
        if self._make_proposer is not None:
            return [Drafter(each) for each in proposers(self._make_proposer(), state=state)]
        assert self._draft_model is not None
        by_model = ModelDrafter(self._draft_model)
        if state is None or state.mask is None:
            return [by_model]
        return [Drafter(ForcedTokens(state.mask, state=state)), by_model]


def lengthen(row: Row, *, draft: tuple[int, ...], tables: BlockTables) -> Row:
    """Return the row with as much of its draft as free blocks allow."""
    if not draft:
        return row
    draft = draft[: tables.extend_freely(row.sequence, n_new=1 + len(draft)) - 1]
    return replace(row, n_new=1 + len(draft), draft=draft)
