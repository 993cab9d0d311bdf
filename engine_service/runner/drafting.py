"""Has a draft model guess what comes next, before the target checks it.

(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192; here the target's own draw decides, see
``scheduling.drafting``.) The draft model is a second runner with a pool of as many blocks as the
target's, and uses the sequences' own block tables: what a block holds of the one, it holds of the
other, or nothing that counts. It computes a sequence's tokens when it is first asked to guess for
it, not before, so that it costs nothing while no guess pays.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from msgspec.structs import replace

from engine_service.errors import EngineLost
from engine_service.runner.model_runner import Flight, Runner, StepResult
from engine_service.scheduling.batch import Batch, Row
from engine_service.scheduling.drafting import StepCost
from engine_service.scheduling.model_drafting import TO_DRAFT
from engine_service.scheduling.sequence import ASSUMED_TOKEN, Sequence, SequenceState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DraftedFlight:
    """A flight of the target's. drafting_s: how long its guesses took."""

    flight: Flight
    drafting_s: float

    @property
    def batch(self) -> Batch:
        return self.flight.batch

    @property
    def is_assumable(self) -> bool:
        return self.flight.is_assumable


class DraftingRunner:
    """A target whose batches get their guesses first."""

    def __init__(self, target: Runner, *, draft_model: "DraftModel") -> None:
        self._target = target
        self._draft_model = draft_model

    def launch(self, batch: Batch, *, after: Flight | None) -> DraftedFlight:
        assert after is None or isinstance(after, DraftedFlight)
        began_s = time.perf_counter()
        batch = self._draft_model.fill(batch)
        drafting_s = time.perf_counter() - began_s
        flight = self._target.launch(batch, after=None if after is None else after.flight)
        return DraftedFlight(flight, drafting_s)

    def collect(self, flight: DraftedFlight) -> StepResult:
        result = self._target.collect(flight.flight)
        return dataclasses.replace(result, drafting_s=flight.drafting_s)

    def clear(self, blocks: SequenceOf[int]) -> None:
        self._target.clear(blocks)
        self._draft_model.clear(blocks)


@dataclass(slots=True)
class _Shadow:
    """A sequence as the draft model has it: with guesses behind its tokens.

    n_known: tokens of the original when it was last looked at. n_computed: tokens of ``guessed``
    whose K and V the draft model has. n_findable: of its blocks, those that others find.
    is_foreign: it has a token that the draft model does not know.
    """

    original: Sequence
    guessed: Sequence
    n_known: int
    n_computed: int = 0
    n_findable: int = 0
    is_foreign: bool = False

    @property
    def n_uncomputed(self) -> int:
        return len(self.guessed) - self.n_computed


@dataclass(slots=True)
class _Guess:
    """n_wanted: tokens to be found at most. is_over: what comes next means nothing."""

    shadow: _Shadow
    n_wanted: int
    found: list[int] = field(default_factory=list)
    is_over: bool = False


class DraftModel:
    """runner: over as many blocks as the target's. max_tokens: of one of its steps; max_len: of a
    sequence. n_ids, n_target_ids: sizes of its vocabulary and of the target's. cost: learns what
    its steps take."""

    def __init__(
        self,
        runner: Runner,
        *,
        block_size: int,
        max_tokens: int,
        max_len: int,
        n_ids: int,
        n_target_ids: int,
        cost: StepCost,
    ) -> None:
        self._runner = runner
        self._block_size = block_size
        self._max_tokens = max_tokens
        self._max_len = max_len
        self._n_ids = n_ids
        self._n_target_ids = n_target_ids
        self._cost = cost
        self._shadows: dict[int, _Shadow] = {}
        # Which tokens a block holds, by their digest, where all of it is computed.
        self._content: dict[int, bytes] = {}

    def fill(self, batch: Batch) -> Batch:
        """Return the batch with a guess in each place where one is to be, or with fewer places.

        An error costs the guesses, and no answer.
        """
        asked = [row for row in batch.rows if row.draft[:1] == (TO_DRAFT,)]
        if not asked:
            return batch
        found: dict[int, list[int]] = {}
        try:
            found = self._guess(asked)
        except EngineLost:
            raise
        except Exception:
            logger.exception("the draft model failed; this step goes without its guesses")
            self.forget()
        filled = {id(row): _filled(row, found.get(id(row.sequence), [])) for row in asked}
        whole = Batch.of(filled.get(id(row), row) for row in batch.rows)
        return dataclasses.replace(batch, rows=whole.rows)

    def forget(self) -> None:
        """Take nothing of what the pool held as held any more."""
        self._let_go(self._shadows.values())
        self._content.clear()

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Forget and overwrite what blocks hold."""
        for block in blocks:
            self._content.pop(block, None)
        self._runner.clear(blocks)

    def _guess(self, asked: SequenceOf[Row]) -> dict[int, list[int]]:
        """Return what is guessed for the rows' sequences, by their ``id``."""
        guesses, rows = self._begin(asked)
        began_s = time.perf_counter()
        flight = self._runner.launch(Batch.of(rows), after=None) if rows else None
        n_guessed = 0
        while flight is not None:
            n_guessed += 1
            following = None
            if flight.is_assumable:
                following = self._go_on(flight, guesses=guesses, n_guessed=n_guessed)
            self._take(flight, guesses=guesses)
            began_s = self._note(flight.batch, began_s=began_s)
            if not flight.is_assumable:
                following = self._go_on(flight, guesses=guesses, n_guessed=n_guessed)
            flight = following
        return {id(guess.shadow.original): guess.found for guess in guesses.values()}

    def _begin(self, asked: SequenceOf[Row]) -> tuple[dict[int, _Guess], list[Row]]:
        """Return what is to be guessed, by ``id`` of the shadow's sequence, and the first step.

        Who has the least to catch up with goes first: a long prompt keeps nobody from guesses. One
        that does not fit a step catches up in several.
        """
        self._let_go(
            shadow
            for shadow in self._shadows.values()
            if shadow.original.state is not SequenceState.RUNNING  # it ended, or gave up its blocks
        )
        guesses = {}
        rows = []
        n_left = self._max_tokens
        shadows = [(self._shadow(row.sequence), row) for row in asked]
        for shadow, row in sorted(shadows, key=lambda each: each[0].n_uncomputed):
            n_new = min(shadow.n_uncomputed, n_left)
            if n_new and row.end <= self._max_len and not shadow.is_foreign:
                n_left -= n_new
                rows.append(self._row(shadow, n_new=n_new))
                guesses[id(shadow.guessed)] = _Guess(shadow, len(row.draft))
        return guesses, rows

    def _go_on(
        self, flight: Flight, *, guesses: dict[int, _Guess], n_guessed: int
    ) -> Flight | None:
        """Launch the step behind one that gives each its ``n_guessed``-th guess, if there is one.
        Those that are not known yet are assumed."""
        rows = []
        for row in flight.batch.rows:
            guess = guesses[id(row.sequence)]
            if row.is_sampled and guess.n_wanted > n_guessed and not guess.is_over:
                if flight.is_assumable:
                    row.sequence.token_ids.append(ASSUMED_TOKEN)
                rows.append(self._row(guess.shadow, n_new=1))
        return self._runner.launch(Batch.of(rows), after=flight) if rows else None

    def _take(self, flight: Flight, *, guesses: dict[int, _Guess]) -> None:
        """Wait for what a step guesses. One that cannot be a guess ends its row."""
        answers = iter(self._runner.collect(flight).answers)
        for row in flight.batch.rows:
            if not row.is_sampled:
                continue
            guess = guesses[id(row.sequence)]
            token_ids = next(answers).token_ids
            guess.is_over = guess.is_over or not token_ids or token_ids[0] >= self._n_target_ids
            if not guess.is_over:
                guess.found += token_ids
                row.sequence.token_ids[row.end : row.end + 1] = token_ids

    def _row(self, shadow: _Shadow, *, n_new: int) -> Row:
        """Return a sequence's next tokens, taken as computed."""
        start, end = shadow.n_computed, shadow.n_computed + n_new
        size = self._block_size
        for block in shadow.guessed.block_table[start // size : -(-end // size)]:
            self._content.pop(block, None)
        shadow.n_computed = end
        return Row(sequence=shadow.guessed, n_computed=start, n_new=n_new)

    def _note(self, batch: Batch, *, began_s: float) -> float:
        """Learn what a step took that did not have to catch up with much; return when it ended."""
        ended_s = time.perf_counter()
        if batch.n_tokens <= 2 * len(batch.rows):
            self._cost.record(n_tokens=batch.n_tokens, step_s=ended_s - began_s)
        return ended_s

    def _shadow(self, sequence: Sequence) -> _Shadow:
        """Return a sequence's shadow, with its tokens as they are now and without guesses."""
        shadow = self._shadows.get(id(sequence))
        if shadow is None:
            shadow = self._shadows[id(sequence)] = _Shadow(sequence, _copied(sequence), n_known=0)
        guessed, known = shadow.guessed, shadow.n_known
        new = sequence.token_ids[known:]
        n_right = known + _n_same(guessed.token_ids[known:], new)
        guessed.token_ids[known:] = new
        shadow.n_known = len(sequence)
        shadow.is_foreign = shadow.is_foreign or max(new, default=0) >= self._n_ids
        if guessed.block_table is not sequence.block_table:  # it is new, or was preempted
            guessed.block_table = sequence.block_table
            shadow.n_findable = self._n_held(sequence)
            shadow.n_computed = shadow.n_findable * self._block_size
        # The newest is computed in any case: what it gives is wanted.
        shadow.n_computed = min(shadow.n_computed, n_right, len(sequence) - 1)
        self._make_findable(shadow)
        return shadow

    def _n_held(self, sequence: Sequence) -> int:
        """Return how many of its first blocks hold what they should."""
        n_full = (len(sequence) - 1) // self._block_size
        digests = sequence.block_digests(n_full, block_size=self._block_size)
        return _n_same([self._content.get(block) for block in sequence.block_table], digests)

    def _make_findable(self, shadow: _Shadow) -> None:
        n_full = shadow.n_computed // self._block_size
        if n_full > shadow.n_findable:
            digests = shadow.original.block_digests(n_full, block_size=self._block_size)
            for index in range(shadow.n_findable, n_full):
                self._content[shadow.original.block_table[index]] = digests[index]
            shadow.n_findable = n_full

    def _let_go(self, shadows: Iterable[_Shadow]) -> None:
        """Let go of sequences, and have the runner do so."""
        for shadow in list(shadows):
            shadow.guessed.state = SequenceState.FINISHED
            del self._shadows[id(shadow.original)]


def _copied(sequence: Sequence) -> Sequence:
    """Return one that draws as this one does, of which nothing but tokens is wanted."""
    guessed = Sequence(
        key=sequence.key,
        prompt_token_ids=tuple(sequence.token_ids[: sequence.n_prompt]),
        sampling=replace(sequence.sampling, logprobs=None, prompt_logprobs=None),
        max_new_tokens=sequence.max_new_tokens,
        cache_salt="",
        seed=sequence.seed,
    )
    guessed.state = SequenceState.RUNNING
    return guessed


def _n_same(first: SequenceOf[object], second: SequenceOf[object]) -> int:
    """Return how many of the first are the same in both."""
    n_same = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        n_same += 1
    return n_same


def _filled(row: Row, guesses: SequenceOf[int]) -> Row:
    """Return a row with these guesses, as far as the mask of its sequence allows them."""
    draft = tuple(guesses)
    state = row.sequence.sampling_state
    if draft and state is not None and state.mask is not None:
        n_allowed = 0
        # What is wrong with a mask, sampling finds too, and fails its request.
        with contextlib.suppress(Exception):
            state.catch_up(row.sequence.token_ids)
            n_allowed = state.mask.n_allowed(draft)
        draft = draft[:n_allowed]
    return replace(row, n_new=1 + len(draft), draft=draft)
