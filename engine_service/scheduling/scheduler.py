"""The scheduling policy: which tokens of which sequences the next step computes.

1. One budget of tokens per step. Every decoding sequence has one reserved; prefill takes the rest
   in chunks (Sarathi-Serve, https://arxiv.org/abs/2403.02310). ``budget`` says how many tokens a
   step may have and how prefills share them.
2. ``request_queue`` says who is admitted next. That one is admitted when there is a place in the
   batch, a chunk to be had, and blocks for all of its tokens so far, those that the prefix cache
   knows shared; until then nobody else is.
3. When a decode needs a block and none is free, the last in rank gives up all of its blocks and
   waits before all of its priority that were never admitted; it is computed again later, from the
   prefix cache if that still knows it. Rank is priority, then order of first admission.
4. Prompt and answer of every request fit the pool, so the first in rank always goes on, and
   therefore each one ends. What waits beyond its deadline is given up; and should a step have
   nothing to compute although there is work, the one that is next is, so that the loop goes on.

Invariant: ``running`` is in order of rank.
"""

import itertools
import time
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from engine_service.errors import DeadlineExceeded, EngineError, RequestError, Stalled
from engine_service.protocol import FinishReason
from engine_service.scheduling.batch import Advance, Batch, Failure, Row
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.budget import StepBudget, has_prefill_room, share_prefill
from engine_service.scheduling.request_queue import RequestQueue
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.standing import check_standing


class Scheduler:
    """Knows token ids and blocks; runs no model.

    suspect: the sequence that ``schedule`` was busy with, should it raise. target_itl_s: see
    ``StepBudget``. clock: seconds; for deadlines and for how long a step takes.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.blocks = blocks
        self.suspect: Sequence | None = None
        self.n_preemptions = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        self._max_sequences = max_sequences
        self._budget = StepBudget(max_tokens=max_batched_tokens, target_itl_s=target_itl_s)
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._waiting = RequestQueue(
            max_waiting=max_waiting, max_waiting_per_tenant=max_waiting_per_tenant or max_waiting
        )
        self._running: list[Sequence] = []
        self._seniority = itertools.count()
        self._failures: list[Failure] = []
        self._scheduled_at_s = 0.0

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence.

        Raises:
            RequestError: it could never fit.
            Overloaded: too many are waiting.
        """
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
        self._waiting.append(sequence)

    def schedule(self) -> Batch:
        """Choose the next step's rows; blocks for them are held when this returns.

        An empty batch has nothing to compute; ``take_failures`` may say why.
        """
        self._scheduled_at_s = self._clock()
        for sequence in self._waiting.expired(self._scheduled_at_s):
            self._fail(sequence, DeadlineExceeded("the request waited beyond its deadline"))
        decodes, prefills = [], []
        for sequence in self.running:
            if sequence.state is not SequenceState.RUNNING:
                break  # preempted for one before it, and so are all after it
            self.suspect = sequence
            if not sequence.is_decoding:
                prefills.append(sequence)
            elif self._make_room(sequence):
                decodes.append(Row(sequence=sequence, n_computed=sequence.n_computed, n_new=1))
        prefills = [seq for seq in prefills if seq.state is SequenceState.RUNNING]
        budget = self._budget.for_prefill(n_decodes=len(decodes))
        # A sequence preempted just now stays out: when it went nothing was free, and one of its
        # blocks is held since, so that it lacks at least one.
        self._admit(prefills, budget=budget)
        self.suspect = None
        shares = share_prefill(prefills, budget=budget)
        rows = [Row(sequence=s, n_computed=s.n_computed, n_new=n_new) for s, n_new in shares]
        if not (decodes or rows):
            self._fail_stalled()
        return Batch.of(decodes + rows)

    def take_failures(self) -> list[Failure]:
        """Return those given up since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def update(self, batch: Batch, *, token_ids: SequenceOf[int]) -> list[Advance]:
        """Record that a batch was computed; ``token_ids`` are those of ``batch.sampled``.

        Sequences that were discarded since ``schedule`` are passed over.
        """
        sampled = batch.sampled
        n_decodes = sum(row.n_new == 1 for row in batch.rows)
        self._budget.record(
            n_decodes=n_decodes,
            n_prefill=batch.n_tokens - n_decodes,
            step_s=self._clock() - self._scheduled_at_s,
        )
        for row in batch.rows:
            if row.sequence.state is SequenceState.RUNNING:
                row.sequence.n_scored = max(row.scored.stop, row.sequence.n_scored)
                row.sequence.n_computed = row.end
                self._register_full_blocks(row.sequence)
        advances = []
        for sequence, token_id in zip(sampled, token_ids, strict=True):
            if sequence.state is not SequenceState.RUNNING:
                continue
            sequence.token_ids.append(token_id)
            self._waiting.charge(sequence, n_tokens=1)
            reason = self._finish_reason(sequence, token_id=token_id)
            if reason is not None:
                self.remove(sequence)
            advances.append(Advance(sequence=sequence, token_id=token_id, finish_reason=reason))
        return advances

    def remove(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; it holds nothing afterwards."""
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
            self._release(sequence)
        elif sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED

    def discard(self, sequence: Sequence) -> list[int]:
        """End a sequence whose K and V are not to be trusted; return the blocks they are in."""
        blocks = sequence.block_table
        self.blocks.forget(blocks)
        self.remove(sequence)
        return blocks

    def _admit(self, prefills: list[Sequence], *, budget: int) -> None:
        """Admit while the next in the queue can be; who is admitted joins ``prefills`` by rank."""
        while self._waiting and len(self._running) < self._max_sequences:
            self.suspect = sequence = self._waiting.head()
            known = self._known_blocks(sequence)
            n_uncomputed = len(sequence) - len(known) * self.blocks.block_size
            if not has_prefill_room(prefills, n_uncomputed=n_uncomputed, budget=budget):
                break
            if not self._claim_blocks(sequence, known=known):
                break
            self._waiting.remove(sequence)
            sequence.state = SequenceState.RUNNING
            if sequence.seniority is None:
                sequence.seniority = next(self._seniority)
                self._waiting.charge(sequence, n_tokens=sequence.n_prompt - sequence.n_computed)
            for members in (self._running, prefills):
                insort(members, sequence, key=_rank)

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        # The last token is always computed, for its logits: its block must not come from the cache.
        block_size = self.blocks.block_size
        n_cacheable = (len(sequence) - 1) // block_size
        if sequence.sampling.prompt_logprobs is not None:
            # The cache keeps no logits.
            n_cacheable = min(n_cacheable, sequence.n_scored // block_size)
        return self.blocks.lookup(sequence.block_digests(n_cacheable, block_size=block_size))

    def _claim_blocks(self, sequence: Sequence, *, known: SequenceOf[int]) -> bool:
        n_new = self.blocks.n_blocks_for(len(sequence)) - len(known)
        table = self.blocks.claim(known=known, n_new=n_new)
        if table is None:
            return False
        sequence.block_table = table
        sequence.n_computed = len(known) * self.blocks.block_size
        sequence.n_registered = len(known)
        if sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed
            self.n_prompt_tokens += sequence.n_prompt
            self.n_cached_tokens += sequence.n_cached
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """Hold the next token's block, preempting for it; False if ``sequence`` itself went."""
        if self.blocks.n_blocks_for(len(sequence)) <= len(sequence.block_table):
            return True
        while (table := self.blocks.claim(known=(), n_new=1)) is None:
            victim = self._running.pop()
            self._release(victim)
            victim.state = SequenceState.WAITING
            self._waiting.put_back(victim)
            self.n_preemptions += 1
            if victim is sequence:
                return False
        sequence.block_table += table
        return True

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        self.remove(sequence)
        self._failures.append(Failure(sequence=sequence, error=error))

    def _fail_stalled(self) -> None:
        """Give up who is next where there is work but no row: no later step could have one."""
        if self._running:
            self._fail(self._running[0], Stalled("no tokens could be scheduled for the request"))
        elif self._waiting:
            self._fail(self._waiting.head(), Stalled("the request could not be admitted"))

    def _release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.n_computed = 0
        sequence.n_registered = 0

    def _register_full_blocks(self, sequence: Sequence) -> None:
        n_full = sequence.n_computed // self.blocks.block_size
        if n_full == sequence.n_registered:
            return
        digests = sequence.block_digests(n_full, block_size=self.blocks.block_size)
        for index in range(sequence.n_registered, n_full):
            self.blocks.register(sequence.block_table[index], digest=digests[index])
        sequence.n_registered = n_full

    def _finish_reason(self, sequence: Sequence, *, token_id: int) -> FinishReason | None:
        if token_id in self._eos_token_ids and not sequence.sampling.ignore_eos:
            return "stop"
        if token_id in sequence.sampling.stop_token_ids:
            return "stop"
        return "length" if sequence.n_generated >= sequence.max_new_tokens else None


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
