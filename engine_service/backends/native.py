"""Our own engine behind the backend interface: the scheduler chooses, the runner computes."""

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch

from engine_service.backends.base import (
    EmbeddingRequest,
    EngineRequest,
    ModelInfo,
    SequenceOutput,
)
from engine_service.backends.step_log import StepLog, StepRecord, TraceWriter
from engine_service.backends.turn import MemoryTurn, has_begun, not_begun
from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import EngineError, EngineLost, Overloaded, WrongTask
from engine_service.protocol import EngineStats, TokenLogprob
from engine_service.runner.common_memory import memory_of
from engine_service.runner.draft_loading import load_both
from engine_service.runner.model_runner import Answer, Flight, StepResult
from engine_service.scheduling.batch import Advance, Batch
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.drafting import PromptLookup
from engine_service.scheduling.sampling_state import SamplingState
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence, SequenceState, seed_of_choice
from engine_service.scheduling.tiers import Tiers


@dataclass(slots=True)
class _Counters:
    n_steps: int = 0
    n_completion_tokens: int = 0
    n_finished: int = 0
    n_aborted: int = 0
    n_failed: int = 0
    last_step_ms: float = 0.0


class NativeBackend:
    """Loads the model when made; raises ModelError if that fails.

    rng: gives the seeds of requests that bring none.
    """

    def __init__(self, config: EngineConfig, *, rng: random.Random | None = None) -> None:
        if config.n_threads is not None:
            torch.set_num_threads(config.n_threads)
        model_config = ModelConfig.from_dir(config.model_dir)
        loaded = load_both(config, model_config=model_config)
        self.info = ModelInfo(
            name=config.model_dir.name,
            architecture=model_config.architecture,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=loaded.device,
            kernels=loaded.kernels,
            quantization=config.quantization,
            kv_cache_dtype=config.kv_cache_dtype,
            backend="native",
            vocab_size=model_config.vocab_size,
            max_model_len=loaded.max_model_len,
            block_size=config.block_size,
            n_blocks=loaded.n_blocks,
            max_sequences=config.max_sequences,
            eos_token_ids=model_config.eos_token_ids,
        )
        self._runner = loaded.runner
        self._ranks = loaded.ranks
        self._memory = None if config.sleep_after_s is None else memory_of(loaded)
        looks_up = config.speculation == "ngram" or (
            config.speculation == "auto" and loaded.draft_model is None and not loaded.overlaps
        )
        self._scheduler = Scheduler(
            blocks=BlockManager(
                n_blocks=loaded.n_blocks,
                block_size=config.block_size,
                tiers=None if loaded.tiers is None else Tiers(loaded.tiers),
            ),
            max_sequences=config.max_sequences,
            max_batched_tokens=config.max_batched_tokens,
            max_waiting=config.max_waiting,
            max_model_len=loaded.max_model_len,
            eos_token_ids=model_config.eos_token_ids,
            max_waiting_per_tenant=config.max_waiting_per_tenant,
            target_itl_s=config.target_itl_s,
            prefill_slowdown=config.prefill_slowdown,
            make_proposer=PromptLookup if looks_up else None,
            draft_model=loaded.draft_model,
        )
        self._turn = MemoryTurn(self._memory, forget=self._scheduler.blocks.forget_all)
        self._rng = rng or random.SystemRandom()
        self._live: dict[int, Sequence] = {}
        self._outputs: list[SequenceOutput] = []
        self._batch: Batch | None = None
        self._flight: Flight | None = None
        self._marks_s = (0.0, 0.0, 0.0)
        self._landed_at_s = 0.0
        self._counters = _Counters()
        self._log = StepLog(TraceWriter(config.trace) if config.trace else None)

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        if self._ranks is not None:
            self._ranks.watch(on_lost)

    def add(self, request: EngineRequest | EmbeddingRequest) -> None:
        if isinstance(request, EmbeddingRequest):
            raise WrongTask(param="input")
        if request.key in self._live:
            raise EngineError(f"the key {request.key} belongs to a live request")
        seed = request.sampling.seed
        seed = self._rng.getrandbits(63) if seed is None else seed
        leader, *forks = (
            self._sequence(request, index=index, seed=seed_of_choice(seed, index=index))
            for index in range(request.sampling.n)
        )
        leader.lead(tuple(forks))
        self._scheduler.add(leader)
        self._live[request.key] = leader

    def abort(self, key: int, *, choice: int | None = None) -> None:
        leader = self._live.get(key)
        if leader is None:
            return
        for sequence in leader.family:
            if choice in (None, sequence.index) and sequence.state is not SequenceState.FINISHED:
                self._scheduler.remove(sequence)
                self._outputs.append(_output_of(sequence, finish_reason="abort"))
        if self._is_over(leader):
            self._counters.n_aborted += 1

    def has_work(self) -> bool:
        if self._outputs or self._flight:
            return True
        live = self._live.values()
        if self._turn.may_hold or has_begun(live):
            return bool(live)
        return self._turn.has_to_give or bool(self._turn.overdue(live))

    def step(self) -> SequenceOf[SequenceOutput]:
        """Launch what comes next, then take the tokens of what was launched before.

        With a runner that needs the processor for its steps both are one batch. With a device the
        next batch is scheduled and launched while the one before it is computed; where it cannot
        be, because it depends on the values of those tokens, they are waited for first. Guesses do:
        they are of what comes behind the newest token.

        Where its memory was given back, a step takes a part of it again instead; where it is to be
        given back, and nothing has begun that needs it, a step gives back a part.
        """
        if not self._is_ready():
            return self._take_outputs()
        if self._flight is not None and not self._may_overlap(self._flight):
            self._land()
        flight = self._flight
        if flight is not None:
            self._scheduler.assume(flight.batch)
        started_s = time.perf_counter()
        self._batch = None
        batch = self._batch = self._scheduler.schedule()
        for failure in self._scheduler.take_failures():
            self._report_failed(failure.sequence, error=failure.error)
        launched = None
        if batch.rows:
            scheduled_s = time.perf_counter()
            launched = self._runner.launch(batch, after=flight)
            marks_s = (started_s, scheduled_s, time.perf_counter())
        if flight is not None:
            self._land()
        if launched is not None:
            self._flight, self._marks_s = launched, marks_s
            if not self._may_overlap(launched):
                self._land()
        return self._take_outputs()

    def fail_running(self, error: EngineError) -> SequenceOf[SequenceOutput]:
        sequences = self._suspects()
        self._batch = self._flight = None
        for sequence in sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._scheduler.remove_family(sequence)
                self._report_failed(sequence, error=error)
        return self._take_outputs()

    def purge(self, tag: str) -> int:
        n_below = self._scheduler.blocks.purge_tiers(tag)
        blocks = self._scheduler.blocks.purge(tag)
        if free := [block for block in blocks if not self._scheduler.blocks.is_held(block)]:
            self._runner.clear(free)
        return n_below + len(blocks)

    def rest(self) -> bool:
        return self._turn.rest()

    def lend(self, *, may_hold: bool) -> None:
        self._turn.tell(may_hold=may_hold)
        self._scheduler.hold_back(is_held=not self._turn.may_hold)

    def stats(self) -> EngineStats:
        counters = self._counters
        blocks = self._scheduler.blocks
        return EngineStats(
            n_running=self._scheduler.n_running,
            n_waiting=self._scheduler.n_waiting,
            n_blocks_total=blocks.n_blocks,
            n_blocks_free=blocks.n_free,
            n_blocks_cached=blocks.n_cached,
            n_preemptions=self._scheduler.n_preemptions,
            n_steps=counters.n_steps,
            n_prompt_tokens=self._scheduler.n_prompt_tokens,
            n_cached_tokens=self._scheduler.n_cached_tokens,
            n_completion_tokens=counters.n_completion_tokens,
            n_finished=counters.n_finished,
            n_aborted=counters.n_aborted,
            n_failed=counters.n_failed,
            last_step_ms=counters.last_step_ms,
            rss_bytes=0 if self._ranks is None else self._ranks.resident_bytes(),
            n_drafted_tokens=self._scheduler.speculation.n_drafted_tokens,
            n_accepted_tokens=self._scheduler.speculation.n_accepted_tokens,
            steps=self._log.stats(waits_s=self._scheduler.waits_s),
            oldest_wait_ms=self._scheduler.oldest_wait_s() * 1000.0,
            tiers=None if blocks.tiers is None else blocks.tiers.stats(),
            is_asleep=not self._turn.is_there,
            is_given_back=self._turn.is_given_back,
            saved_bytes=self._turn.saved_bytes,
            waits_for_memory=not self._turn.may_hold and bool(not_begun(self._live.values())),
        )

    def _is_ready(self) -> bool:
        """Return whether there is a step to compute, having done a part of what has to be done to
        the memory where there is not."""
        if self._turn.may_hold:
            is_there = self._turn.is_there
            if not is_there and self._live:  # else all that was wanted was aborted
                self._wake()
            return is_there
        for sequence, error in self._turn.overdue(self._live.values()):
            self._refuse(sequence, error)
        if self._flight is not None or has_begun(self._live.values()):
            return True
        self._turn.give_next()
        return False

    def _wake(self) -> None:
        try:
            self._turn.take_next()
        except Overloaded as error:
            for sequence in tuple(self._live.values()):
                self._refuse(sequence, error)

    def _refuse(self, sequence: Sequence, error: EngineError) -> None:
        self._scheduler.remove_family(sequence)
        self._report_failed(sequence, error=error)

    def _may_overlap(self, flight: Flight) -> bool:
        return flight.is_assumable and self._scheduler.speculation.may_assume

    def _land(self) -> None:
        """Take the tokens of the batch in flight. What of it fell into the time of the one before
        counts as that one's."""
        flight = self._flight
        assert flight is not None
        began_s = max(self._marks_s[0], self._landed_at_s)
        result = self._runner.collect(flight)
        chosen_s = time.perf_counter()
        step_s = chosen_s - began_s - result.drafting_s
        self._update(flight.batch, result=result, step_s=step_s)
        self._flight = None
        self._landed_at_s = time.perf_counter()
        _, scheduled_s, launched_s = (max(mark_s, began_s) for mark_s in self._marks_s)
        computed_s = max(result.computed_s, launched_s)
        self._note(
            flight.batch,
            marks_s=(began_s, scheduled_s, computed_s, chosen_s, self._landed_at_s),
        )

    def _update(self, batch: Batch, *, result: StepResult, step_s: float) -> None:
        self._outputs += [self._scored(seq, logprobs) for seq, logprobs in result.scored]
        logprobs = {
            id(sequence): answer.logprobs
            for sequence, answer in zip(batch.sampled, result.answers, strict=True)
            if answer.logprobs
        }
        self._fail_without_token(batch, answers=result.answers)
        advances = self._scheduler.update(
            batch, token_ids=[answer.token_ids for answer in result.answers], step_s=step_s
        )
        self._outputs += [
            self._advanced(advance, logprobs=logprobs.get(id(advance.sequence), ()))
            for advance in advances
        ]

    def _note(self, batch: Batch, *, marks_s: tuple[float, float, float, float, float]) -> None:
        n_decode = sum(row.n_new for row in batch.rows if row.is_decode)
        self._counters.n_steps += 1
        self._counters.last_step_ms = (marks_s[-1] - marks_s[0]) * 1000.0
        self._log.add(
            StepRecord(
                marks_s=marks_s,
                n_sequences=len(batch.rows),
                n_decode_tokens=n_decode,
                n_prefill_tokens=batch.n_tokens - n_decode,
                n_draft_tokens=sum(len(row.draft) for row in batch.rows),
                n_waiting=self._scheduler.n_waiting,
                n_blocks_free=self._scheduler.blocks.n_free,
            )
        )

    def _sequence(self, request: EngineRequest, *, index: int, seed: int) -> Sequence:
        mask = request.mask
        return Sequence(
            key=request.key,
            index=index,
            prompt_token_ids=request.prompt_token_ids,
            sampling=request.sampling,
            max_new_tokens=request.max_new_tokens,
            cache_salt=request.cache_salt,
            cache_tags=request.cache_tags,
            seed=seed,
            standing=request.standing,
            sampling_state=SamplingState.of(
                request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                eos_token_ids=self.info.eos_token_ids,
                mask=mask.fork() if mask is not None and index else mask,
            ),
        )

    def _fail_without_token(self, batch: Batch, *, answers: SequenceOf[Answer]) -> None:
        for sequence, answer in zip(batch.sampled, answers, strict=True):
            if answer.token_ids or sequence.state is SequenceState.FINISHED:
                continue  # finished: with another of its family
            error = answer.error
            if error is None:
                self._runner.clear(self._scheduler.discard(sequence))
                error = EngineError("the model's output for this request is not finite")
            else:
                self._scheduler.remove_family(sequence)
            self._report_failed(sequence, error=error)

    def _scored(self, sequence: Sequence, logprobs: tuple[TokenLogprob, ...]) -> SequenceOutput:
        return _output_of(sequence, prompt_logprobs=logprobs)

    def _suspects(self) -> SequenceOf[Sequence]:
        """Return whom to end after a step that raised: all that was in flight or about to be, and
        who counts on what it was to load."""
        in_flight = [] if self._flight is None else [self._flight.batch]
        batches = in_flight if self._batch is None else [*in_flight, self._batch]
        found = [each for batch in batches for row in batch.rows for each in row.members]
        if self._batch is None:  # it was scheduling itself that raised
            suspect = self._scheduler.suspect
            found = [*self._scheduler.running] if suspect is None else [*found, suspect]
        found += self._scheduler.distrust(batches)
        return tuple({id(sequence): sequence for sequence in found}.values())

    def _report_failed(self, sequence: Sequence, *, error: EngineError) -> None:
        del self._live[sequence.key]
        self._counters.n_failed += 1
        self._outputs.append(_output_of(sequence, error=error))

    def _advanced(self, advance: Advance, *, logprobs: tuple[TokenLogprob, ...]) -> SequenceOutput:
        sequence = advance.sequence
        n_new = len(advance.token_ids)
        self._counters.n_completion_tokens += n_new
        if advance.finish_reason is not None and self._is_over(sequence):
            self._counters.n_finished += 1
        return _output_of(
            sequence,
            token_ids=advance.token_ids,
            finish_reason=advance.finish_reason,
            step=self._counters.n_steps + 1,
            logprobs=logprobs[:n_new],
        )

    def _is_over(self, sequence: Sequence) -> bool:
        """Forget a request whose answers have all ended; return whether that was now."""
        if any(member.state is not SequenceState.FINISHED for member in sequence.family):
            return False
        return self._live.pop(sequence.key, None) is not None

    def _take_outputs(self) -> list[SequenceOutput]:
        outputs, self._outputs = self._outputs, []
        return outputs


def _output_of(sequence: Sequence, **fields: Any) -> SequenceOutput:
    return SequenceOutput(
        key=sequence.key,
        choice=sequence.index,
        n_cached_tokens=sequence.n_cached or 0,
        n_completion_tokens=sequence.n_generated,
        waited_s=sequence.waited_s,
        **fields,
    )
