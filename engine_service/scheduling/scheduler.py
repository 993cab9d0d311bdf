"""The scheduling policy: which tokens of which sequences the next step computes.

1. One budget of tokens per step. Every decoding sequence has one reserved; prefill takes the rest
   in chunks (Sarathi-Serve, https://arxiv.org/abs/2403.02310). ``budget`` says how many tokens a
   step may have and how prefills share them.
2. ``request_queue`` says who is admitted next. That one is admitted when there is a place in the
   batch, a chunk to be had, and blocks for all of its tokens so far, those that the prefix cache
   knows shared; until then nobody else is. One that has forks needs a place for each: they start
   when its prompt's last token is computed.
3. While one tenant floods and another asks for little, not everyone has a row in every step:
   ``sharing`` says who, and who is admitted first.
4. When a decode needs a block and none is free, the last in rank gives up all of its blocks and
   waits before all of its priority that were never admitted; it is computed again later, from the
   prefix cache or the ``tiers`` below it if these still know it. Rank is priority, then order of
   first admission.
5. Prompt and answer of every request fit the pool, so the first in rank always goes on, and
   therefore each one ends. What waits beyond its deadline is given up; and should a step have
   nothing to compute although there is work, the one that is next is, so that the loop goes on.
6. Where steps overlap, the next one is scheduled while one is in flight: ``assume`` has that one's
   sequences go on as if each had got a token, whose value the device alone knows; ``update`` says
   which it was. What was scheduled for a sequence that it ends is passed over, and its blocks may
   be given away at once, since the device computes steps in their order. Who is preempted while in
   flight is not admitted again before ``update``: its newest token is not known until then, and
   what lands belongs to blocks that it holds no more.

Invariant: ``running`` is in order of rank.
"""

import itertools
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from operator import attrgetter

from engine_service.errors import DeadlineExceeded, EngineError, RequestError, Stalled
from engine_service.protocol import FinishReason
from engine_service.scheduling.batch import Advance, Batch, Failure, Row
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.block_tables import BlockTables
from engine_service.scheduling.budget import StepBudget, has_prefill_room, share_prefill
from engine_service.scheduling.drafting import Proposer, StepCost
from engine_service.scheduling.model_drafting import DraftModelUse
from engine_service.scheduling.request_queue import RequestQueue
from engine_service.scheduling.sequence import ASSUMED_TOKEN, Sequence, SequenceState
from engine_service.scheduling.sharing import Sharing, Turn
from engine_service.scheduling.speculation import Speculation, lengthen
from engine_service.scheduling.standing import check_standing
from engine_service.scheduling.tiers import NO_TRANSFERS

_WINDOW_WAITS = 512
_rank = attrgetter("rank")


class Scheduler:
    """Knows token ids and blocks; runs no model.

    suspect: the sequence that ``schedule`` was busy with, should it raise. waits_s: how long the
    latest admitted requests had queued. target_itl_s, prefill_slowdown: see ``StepBudget``.
    make_proposer, draft_model: see ``Speculation``. clock: seconds; for deadlines and step times.
    """

    def __init__(
        self,
        *,
        blocks: BlockManager,
        max_sequences: int,
        max_batched_tokens: int,
        max_waiting: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        max_waiting_per_tenant: int | None = None,
        target_itl_s: float | None = None,
        prefill_slowdown: float | None = None,
        make_proposer: Callable[[], Proposer] | None = None,
        draft_model: DraftModelUse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.blocks = blocks
        self._tables = BlockTables(blocks)
        self.suspect: Sequence | None = None
        self.n_preemptions = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        cost = StepCost()
        self.speculation = Speculation(make_proposer, cost=cost, draft_model=draft_model)
        self._sharing = Sharing(cost=cost, max_sequences=max_sequences)
        self._max_sequences = max_sequences
        self._max_batched_tokens = max_batched_tokens
        self._budget = StepBudget(
            cost=cost,
            max_tokens=max_batched_tokens,
            target_itl_s=target_itl_s,
            prefill_slowdown=prefill_slowdown,
        )
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._waiting = RequestQueue(
            max_waiting=max_waiting, max_waiting_per_tenant=max_waiting_per_tenant or max_waiting
        )
        self._running: list[Sequence] = []
        self._seniority = itertools.count()
        self._failures: list[Failure] = []
        self._is_assuming = False
        self._victims: list[Sequence] = []
        self._scheduled_at_s = 0.0
        self.waits_s: deque[float] = deque(maxlen=_WINDOW_WAITS)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def oldest_wait_s(self) -> float:
        """Return the longest wait of those of the usual priority or above; 0 where none waits."""
        arrived_at_s = self._waiting.oldest_arrival_s(min_priority=0)
        return 0.0 if arrived_at_s is None else self._clock() - arrived_at_s

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    def hold_back(self, *, is_held: bool) -> None:
        """Admit nobody new, or go on to do so."""
        self._waiting.admits_new = not is_held

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises RequestError where it could never fit, and Overloaded where
        too many are waiting."""
        n_answers = len(sequence.family)
        if n_answers > self._max_sequences:
            raise RequestError(
                f"{n_answers} answers do not fit a batch of {self._max_sequences}",
                code="invalid_value",
                param="n",
            )
        n_tokens = sequence.n_prompt + sequence.max_new_tokens
        if not sequence.n_prompt or sequence.max_new_tokens < 1 or n_tokens > self._max_model_len:
            raise RequestError(
                f"{sequence.n_prompt} prompt tokens and {sequence.max_new_tokens} new ones do not "
                f"fit a context of {self._max_model_len}",
                code="context_length_exceeded",
                param="max_tokens",
            )
        check_standing(sequence.standing)
        if sequence.standing.deadline_s is not None:
            sequence.expires_at_s = self._clock() + sequence.standing.deadline_s
        sequence.arrived_at_s = self._clock()
        self._waiting.append(sequence)
        self._sharing.note(sequence, now_s=sequence.arrived_at_s)

    def schedule(self) -> Batch:
        """Choose the next step's rows; blocks for them are held when this returns.

        An empty batch has nothing to compute; ``take_failures`` may say why.
        """
        self._scheduled_at_s = self._clock()
        self._victims = []
        is_assuming, self._is_assuming = self._is_assuming, False
        for sequence in self._waiting.expired(self._scheduled_at_s):
            if sequence.state is SequenceState.WAITING:  # else it went with one of its family
                self._fail(sequence, DeadlineExceeded("the request waited beyond its deadline"))
        self._sharing.look(
            self._running, waiting=self._waiting.by_tenant, now_s=self._scheduled_at_s
        )
        next_up = self._waiting.next_up(first=self._sharing.first)
        turn = self._sharing.turn(self._running, next_up=next_up)
        rows = self._rows(turn)
        if not rows and turn != Turn():  # the prompt that the others stood aside for has no room
            rows = self._rows(Turn())
        if not rows and not is_assuming:
            self._fail_stalled()
        transfers = self._tables.take_transfers() if rows else NO_TRANSFERS
        return Batch.of(rows, copies=self._tables.take_copies(), transfers=transfers)

    def _rows(self, turn: Turn) -> list[Row]:
        rows, prefills = self._decode(turn)
        # Who finds no place in the batch gains nothing from a larger step. Forks have theirs before
        # they start, also while the prompt that they start from stands aside.
        n_forks = sum(len(each.pending_forks) for each in self._running if each.forks)
        n_places = self._max_sequences - len(self._running) - n_forks
        n_prompts = len(prefills) + min(len(self._waiting), n_places)
        drafts = self.speculation.draft(rows, max_tokens=self._max_drafted(rows, n_prompts))
        budget = self._budget.for_prefill(
            n_streams=len(rows),
            n_decodes=len(rows) + sum(map(len, drafts)),
            n_prompts=n_prompts,
        )
        self._admit(prefills, turn=turn, budget=budget, n_places=n_places)
        self.suspect = None
        # Guesses come last: no prompt waits for a block that one of them holds.
        rows = [
            lengthen(row, draft=draft, tables=self._tables)
            for row, draft in zip(rows, drafts, strict=True)
        ]
        shares = share_prefill(prefills, budget=budget)
        return rows + [self._row(sequence, n_new=n_new) for sequence, n_new in shares]

    def take_failures(self) -> list[Failure]:
        """Return those given up since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def assume(self, batch: Batch) -> None:
        """Take a batch in flight, without guesses, as computed until ``update`` is called for it;
        before that, ``schedule`` is to be called once."""
        self._is_assuming = True
        for row in batch.rows:
            for sequence in row.members:
                if sequence.state is SequenceState.RUNNING:
                    sequence.n_computed = row.end
                    if row.is_sampled:
                        sequence.token_ids.append(ASSUMED_TOKEN)

    def update(
        self, batch: Batch, *, token_ids: SequenceOf[SequenceOf[int]], step_s: float | None = None
    ) -> list[Advance]:
        """Record that a batch was computed; ``token_ids`` are what each of ``batch.sampled`` got.

        Sequences that were discarded since ``schedule`` are passed over, and so is what comes
        behind a token that ends its sequence. step_s: how long it took; None is since ``schedule``.
        """
        if step_s is None:
            step_s = self._clock() - self._scheduled_at_s
        n_decodes = sum(row.n_new for row in batch.rows if row.is_decode)
        self._budget.record(
            n_decodes=n_decodes, n_prefill=batch.n_tokens - n_decodes, step_s=step_s
        )
        self._tables.settle_loads()
        advances = []
        sampled = iter(token_ids)
        for row in batch.rows:
            scored = row.scored
            for sequence in row.members:
                new_ids = next(sampled) if row.is_sampled else ()
                if sequence.state is SequenceState.FINISHED:
                    continue
                if scored:
                    sequence.n_scored = max(scored.stop, sequence.n_scored)
                if row.is_sampled:
                    advances.append(self._advance(sequence, token_ids=new_ids, row=row))
                elif sequence.state is SequenceState.RUNNING:
                    sequence.n_computed = row.end
                    self._tables.register_full(sequence)
        return advances

    def _advance(self, sequence: Sequence, *, token_ids: SequenceOf[int], row: Row) -> Advance:
        reason = None
        del sequence.token_ids[row.n_known :]  # the assumed one
        for token_id in token_ids:
            sequence.token_ids.append(token_id)
            if (reason := self._finish_reason(sequence, token_id=token_id)) is not None:
                break
        n_new = len(sequence) - row.n_known
        self._waiting.charge(sequence, n_tokens=n_new)
        if sequence.state is SequenceState.RUNNING:  # else it was preempted while in flight
            sequence.n_computed = len(sequence) - 1
            self._tables.register_full(sequence)
        if sequence.drafters:  # a draft model may have guessed fewer than there is room for
            self._tables.trim(sequence)
        if row.draft:
            self.speculation.count(row, n_accepted=n_new - 1)
        if reason is not None:
            self.remove(sequence)
        return Advance(sequence=sequence, token_ids=tuple(token_ids[:n_new]), finish_reason=reason)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; it holds nothing afterwards, and has no token
        that is only assumed."""
        if sequence.token_ids[-1:] == [ASSUMED_TOKEN]:
            del sequence.token_ids[-1]
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
            self._tables.close(sequence)
        elif sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED

    def remove_family(self, sequence: Sequence) -> None:
        """End all answers of the sequence's request."""
        for member in sequence.family:
            self.remove(member)

    def discard(self, sequence: Sequence) -> list[int]:
        """End a family whose K and V are not to be trusted; return the blocks they are in.

        Those that another family holds are not among them: it reads what they hold.
        """
        for member in sequence.family:
            self._tables.forget_below(member)
        blocks = {block for member in sequence.family for block in member.block_table}
        self.blocks.forget(list(blocks))
        self.remove_family(sequence)
        return [block for block in blocks if not self.blocks.is_held(block)]

    def distrust(self, batches: SequenceOf[Batch]) -> list[Sequence]:
        """Forget what steps that raised were to spill, and return who counts on what they load."""
        if self.blocks.tiers is not None:
            self.blocks.tiers.distrust(spill for batch in batches for spill in batch.spills)
        return [sequence for sequence in self._running if self._tables.is_loading(sequence)]

    def _decode(self, turn: Turn) -> tuple[list[Row], list[Sequence]]:
        """Return the rows of those whose turn it is to decode, with room made for them, and who
        prefills."""
        rows: list[Row] = []
        prefills: list[Sequence] = []
        for sequence in self.running:
            if sequence.state is not SequenceState.RUNNING:
                break  # preempted for one before it, and so are all after it
            self.suspect = sequence
            if sequence.is_spent:
                continue
            if not sequence.is_decoding:
                if turn.takes_prompt(sequence):
                    prefills.append(sequence)
            elif id(sequence) not in turn.left_out and self._make_room(sequence, n_new=1):
                rows.append(self._row(sequence, n_new=1))
        return rows, [seq for seq in prefills if seq.state is SequenceState.RUNNING]

    def _max_drafted(self, rows: SequenceOf[Row], n_prompts: int) -> int:
        """Return how many tokens of the step may be guesses; prompts are sure of the other half."""
        n_left = self._max_batched_tokens - len(rows)
        return n_left // 2 if n_prompts else n_left

    def _row(self, sequence: Sequence, *, n_new: int) -> Row:
        """Return a sequence's row; where it reaches the prompt's end the forks start."""
        forks = sequence.pending_forks if n_new == sequence.n_uncomputed else ()
        for fork in forks:
            self._tables.share(sequence, fork=fork)
            insort(self._running, fork, key=_rank)
        return Row(sequence=sequence, n_computed=sequence.n_computed, n_new=n_new, forks=forks)

    def _admit(self, prefills: list[Sequence], *, turn: Turn, budget: int, n_places: int) -> None:
        """Admit while the next in the queue can be; who is admitted joins ``prefills`` by rank."""
        while (sequence := self._waiting.next_up(first=self._sharing.first)) is not None:
            self.suspect = sequence
            n_places -= 1 + len(sequence.pending_forks)
            if n_places < 0 or not self._sharing.may_enter(sequence, running=self._running):
                break
            if sequence in self._victims:
                # It may be in flight. (It mostly lacks a block, too; not where another has its
                # prefix in blocks of its own, which it would share now.)
                break
            if not turn.takes_prompt(sequence):
                break
            known = self._tables.known_prefix(sequence)
            n_uncomputed = len(sequence) - known.n_blocks * self.blocks.block_size
            if not has_prefill_room(prefills, n_uncomputed=n_uncomputed, budget=budget):
                break
            if not self._tables.open(sequence, known=known):
                break
            if sequence.n_cached is None:
                sequence.n_cached = sequence.n_computed
                self.n_prompt_tokens += sequence.n_prompt
                self.n_cached_tokens += sequence.n_cached
            self._waiting.remove(sequence)
            sequence.state = SequenceState.RUNNING
            if sequence.seniority is None:
                sequence.seniority = next(self._seniority)
                sequence.waited_s = self._scheduled_at_s - sequence.arrived_at_s
                self.waits_s.append(sequence.waited_s)
                self._waiting.charge(sequence, n_tokens=sequence.n_prompt - sequence.n_computed)
            for members in (self._running, prefills):
                insort(members, sequence, key=_rank)

    def _make_room(self, sequence: Sequence, *, n_new: int) -> bool:
        """Hold the next tokens' blocks, preempting for them; False if ``sequence`` itself went."""
        while not self._tables.extend(sequence, n_new=n_new):
            victim = self._running.pop()
            self._victims.append(victim)
            self._tables.close(victim)
            victim.state = SequenceState.WAITING
            self._waiting.put_back(victim)
            self.n_preemptions += 1
            if victim is sequence:
                return False
        return True

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        self.remove_family(sequence)
        self._failures.append(Failure(sequence=sequence, error=error))

    def _fail_stalled(self) -> None:
        """Give up who is next where there is work but no row: no later step could have one."""
        if self._running:
            self._fail(self._running[0], Stalled("no tokens could be scheduled for the request"))
        elif self._waiting:
            self._fail(self._waiting.head(), Stalled("the request could not be admitted"))

    def _finish_reason(self, sequence: Sequence, *, token_id: int) -> FinishReason | None:
        is_end = token_id in self._eos_token_ids and not sequence.sampling.ignore_eos
        if is_end or token_id in sequence.sampling.stop_token_ids:
            return "stop"
        return "length" if sequence.is_spent else None
