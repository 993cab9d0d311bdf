"""The scheduling policy: which tokens of which sequences the next step computes.

1. One budget of tokens per step. Every decoding sequence has one reserved; prefill takes the rest
   in chunks, in order of arrival. (Sarathi-Serve, https://arxiv.org/abs/2403.02310)
2. First come, first served. A sequence is admitted when there is a place in the batch and the pool
   has blocks for all of its tokens so far, those that the prefix cache knows shared.
3. When a decode needs a block and none is free, the latest arrival gives up all of its blocks and
   returns to the head of the queue; it is computed again later, from the prefix cache if that
   still knows it.
4. Prompt and answer of every request fit the pool, so the oldest sequence always goes on, and
   therefore each one ends.

Invariant: running, then waiting, is in order of arrival.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from engine_service.errors import RequestError
from engine_service.protocol import FinishReason
from engine_service.scheduling.batch import Batch, Row
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.request_queue import RequestQueue
from engine_service.scheduling.sequence import Sequence, SequenceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """A sequence got a token; ``finish_reason`` is set where it was the last."""

    sequence: Sequence
    token_id: int
    finish_reason: FinishReason | None


class Scheduler:
    """Knows token ids and blocks; runs no model."""

    def __init__(
        self,
        *,
        blocks: BlockManager,
        max_sequences: int,
        max_batched_tokens: int,
        max_waiting: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.blocks = blocks
        self.n_preemptions = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        self._max_sequences = max_sequences
        self._max_batched_tokens = max_batched_tokens
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._waiting = RequestQueue(max_waiting=max_waiting)
        self._running: list[Sequence] = []

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
        self._waiting.append(sequence)

    def schedule(self) -> Batch:
        """Choose the next step's rows; blocks for them are held when this returns."""
        budget = self._max_batched_tokens - sum(seq.is_decoding for seq in self._running)
        rows = []
        for sequence in self.running:
            if sequence.state is not SequenceState.RUNNING:
                break  # preempted for an earlier one, and so are all after it
            if sequence.is_decoding:
                if self._make_room(sequence):
                    rows.append(Row(sequence=sequence, n_computed=sequence.n_computed, n_new=1))
            elif budget:
                rows.append(self._prefill_row(sequence, budget=budget))
                budget -= rows[-1].n_new
        # A sequence preempted just now stays out: when it went nothing was free, and one of its
        # blocks is held since, so that it lacks at least one.
        return Batch.of(rows + self._admit(budget))

    def update(self, batch: Batch, *, token_ids: SequenceOf[int]) -> list[Advance]:
        """Record that a batch was computed; ``token_ids`` are those of ``batch.sampled``.

        Sequences that were discarded since ``schedule`` are passed over.
        """
        sampled = batch.sampled
        for row in batch.rows:
            if row.sequence.state is SequenceState.RUNNING:
                row.sequence.n_computed = row.end
                self._register_full_blocks(row.sequence)
        advances = []
        for sequence, token_id in zip(sampled, token_ids, strict=True):
            if sequence.state is not SequenceState.RUNNING:
                continue
            sequence.token_ids.append(token_id)
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

    def _admit(self, budget: int) -> list[Row]:
        rows: list[Row] = []
        while budget and self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting.head()
            if not self._claim_blocks(sequence):
                break
            self._waiting.pop()
            self._running.append(sequence)
            sequence.state = SequenceState.RUNNING
            rows.append(self._prefill_row(sequence, budget=budget))
            budget -= rows[-1].n_new
        return rows

    def _claim_blocks(self, sequence: Sequence) -> bool:
        # The last token is always computed, for its logits: its block must not come from the cache.
        block_size = self.blocks.block_size
        n_cacheable = (len(sequence) - 1) // block_size
        known = self.blocks.lookup(sequence.block_digests(n_cacheable, block_size=block_size))
        n_new = self.blocks.n_blocks_for(len(sequence)) - len(known)
        table = self.blocks.claim(known=known, n_new=n_new)
        if table is None:
            return False
        sequence.block_table = table
        sequence.n_computed = len(known) * block_size
        sequence.n_registered = len(known)
        if sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed
            self.n_prompt_tokens += sequence.n_prompt
            self.n_cached_tokens += sequence.n_cached
        return True

    def _prefill_row(self, sequence: Sequence, *, budget: int) -> Row:
        n_new = min(sequence.n_uncomputed, budget)
        return Row(sequence=sequence, n_computed=sequence.n_computed, n_new=n_new)

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
        return "length" if sequence.n_generated >= sequence.max_new_tokens else None
