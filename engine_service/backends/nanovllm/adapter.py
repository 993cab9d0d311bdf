"""nano-vllm behind the backend interface: its scheduler chooses, its runner computes.

Who is next is decided by our ``RequestQueue``, as in our own backend: tenants, priorities and
deadlines mean the same. A request goes over to nano-vllm when its next step could take it, and from
then on nano-vllm's policy holds: prompts before decodes, and the latest is preempted first.
"""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Final

from engine_service.backends.base import (
    EmbeddingRequest,
    EngineRequest,
    SequenceOutput,
)
from engine_service.backends.nanovllm.admission import admit, temperature_for
from engine_service.backends.nanovllm.loading import Package
from engine_service.backends.step_log import StepLog, StepRecord, TraceWriter
from engine_service.config import EngineConfig
from engine_service.errors import DeadlineExceeded, EngineError, EngineLost, WrongTask
from engine_service.protocol import EngineStats, FinishReason
from engine_service.scheduling.request_queue import RequestQueue
from engine_service.scheduling.sequence import Sequence
from engine_service.scheduling.standing import check_standing

_WINDOW_WAITS: Final = 512


@dataclass(slots=True)
class _Live:
    """A request. queued: its place in our queue. nano: nano-vllm's sequence, once it has it.
    n_reported: tokens of the answer that outputs had. n_cached: None until it was scheduled."""

    request: EngineRequest
    queued: Sequence
    nano: Any = None
    n_reported: int = 0
    n_cached: int | None = None


@dataclass(slots=True)
class _Counters:
    n_steps: int = 0
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_completion_tokens: int = 0
    n_finished: int = 0
    n_aborted: int = 0
    n_failed: int = 0
    last_step_ms: float = 0.0


class NanoVllmBackend:
    """package: a loaded model, see ``load_package``. clock: seconds, for deadlines and waits."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        package: Package,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = package.info
        self._scheduler = package.scheduler
        self._runner = package.runner
        self._make_sequence = package.make_sequence
        self._max_batched_tokens = config.max_batched_tokens
        self._queue = RequestQueue(
            max_waiting=config.max_waiting,
            max_waiting_per_tenant=config.max_waiting_per_tenant or config.max_waiting,
        )
        self._clock = clock
        self._live: dict[int, _Live] = {}
        self._by_nano: dict[int, _Live] = {}  # by its sequence's number
        self._outputs: list[SequenceOutput] = []
        self._batch: list[Any] | None = None
        self._counters = _Counters()
        self._waits_s: deque[float] = deque(maxlen=_WINDOW_WAITS)
        self._log = StepLog(TraceWriter(config.trace) if config.trace else None)

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        """Nothing runs beside this process; a step finds out itself that the GPU is lost."""

    def add(self, request: EngineRequest | EmbeddingRequest) -> None:
        if isinstance(request, EmbeddingRequest):
            raise WrongTask(param="input")
        if request.key in self._live:
            raise EngineError(f"the key {request.key} belongs to a live request")
        admit(request, info=self.info)
        check_standing(request.standing)
        queued = Sequence(
            key=request.key,
            prompt_token_ids=request.prompt_token_ids,
            sampling=request.sampling,
            max_new_tokens=request.max_new_tokens,
            cache_salt=request.cache_salt,
            seed=0,  # nano-vllm knows none
            standing=request.standing,
        )
        queued.arrived_at_s = self._clock()
        if request.standing.deadline_s is not None:
            queued.expires_at_s = queued.arrived_at_s + request.standing.deadline_s
        self._queue.append(queued)
        self._live[request.key] = _Live(request=request, queued=queued)

    def abort(self, key: int, *, choice: int | None = None) -> None:
        live = self._live.get(key)
        if live is not None and choice in (None, 0):
            self._end(live)
            self._counters.n_aborted += 1
            self._outputs.append(self._output_of(live, finish_reason="abort"))

    def has_work(self) -> bool:
        return bool(self._live or self._outputs)

    def step(self) -> SequenceOf[SequenceOutput]:
        started_s = time.perf_counter()
        self._batch = None
        self._expire()
        self._feed()
        if self._scheduler.is_finished():
            return self._take_outputs()
        batch, is_prefill = self._scheduler.schedule()
        self._batch = batch
        n_tokens = sum(sequence.num_scheduled_tokens for sequence in batch)
        self._note_first(batch)
        scheduled_s = time.perf_counter()
        token_ids = self._run(batch, is_prefill=is_prefill)
        computed_s = time.perf_counter()
        self._scheduler.postprocess(batch, token_ids, is_prefill)
        for sequence in batch:
            self._advance(self._by_nano[sequence.seq_id])
        # Its runner samples in the same call.
        marks_s = (started_s, scheduled_s, computed_s, computed_s, time.perf_counter())
        self._note_step(batch, n_prefill_tokens=n_tokens if is_prefill else 0, marks_s=marks_s)
        return self._take_outputs()

    def _run(self, batch: list[Any], *, is_prefill: bool) -> list[int]:
        try:
            return self._runner.run(batch, is_prefill)
        except Exception as error:
            if self._runner.is_lost():
                raise EngineLost(f"the GPU takes no more work: {error}") from error
            raise

    def fail_running(self, error: EngineError) -> SequenceOf[SequenceOutput]:
        # Where scheduling raised, any sequence that nano-vllm has may be half moved.
        suspects = [*self._by_nano.values()]
        if self._batch is not None:
            ids = {sequence.seq_id for sequence in self._batch}
            suspects = [live for live in suspects if live.nano.seq_id in ids]
        self._batch = None
        for live in suspects:
            self._fail(live, error=error)
        return self._take_outputs()

    def purge(self, tag: str) -> int:
        manager = self._scheduler.block_manager
        blocks: list[int] = manager.purge(tag)
        if free := [block for block in blocks if not manager.is_held(block)]:
            self._runner.clear(free)
        return len(blocks)

    def lend(self, *, may_hold: bool) -> None:
        """nano-vllm shares its memory with nobody."""

    def rest(self) -> bool:
        """nano-vllm keeps its memory: ``sleep_after_s`` is refused."""
        return False

    def stats(self) -> EngineStats:
        counters, scheduler = self._counters, self._scheduler
        manager = scheduler.block_manager
        oldest_s = self._queue.oldest_arrival_s(min_priority=0)
        return EngineStats(
            n_running=len(scheduler.running),
            n_waiting=len(self._queue) + len(scheduler.waiting),
            n_blocks_total=len(manager.blocks),
            n_blocks_free=len(manager.free_block_ids),
            n_blocks_cached=len(manager.hash_to_block_id),
            n_preemptions=scheduler.n_preemptions,
            n_steps=counters.n_steps,
            n_prompt_tokens=counters.n_prompt_tokens,
            n_cached_tokens=counters.n_cached_tokens,
            n_completion_tokens=counters.n_completion_tokens,
            n_finished=counters.n_finished,
            n_aborted=counters.n_aborted,
            n_failed=counters.n_failed,
            last_step_ms=counters.last_step_ms,
            steps=self._log.stats(waits_s=self._waits_s),
            oldest_wait_ms=0.0 if oldest_s is None else (self._clock() - oldest_s) * 1000.0,
        )

    def _expire(self) -> None:
        for queued in self._queue.expired(self._clock()):
            error = DeadlineExceeded("the request waited beyond its deadline")
            self._fail(self._live[queued.key], error=error)

    def _feed(self) -> None:
        """Hand over whom the next step could take; the others stay where they can be overtaken."""
        scheduler, manager = self._scheduler, self._scheduler.block_manager
        n_tokens = sum(len(sequence) for sequence in scheduler.waiting)
        if scheduler.waiting and not scheduler.waiting[0].block_table:
            return  # preempted, and first in nano-vllm's line until there are blocks for it
        while self._queue and n_tokens < self._max_batched_tokens:
            if len(scheduler.running) + len(scheduler.waiting) >= self.info.max_sequences:
                return
            live = self._live[self._queue.head().key]
            nano = self._sequence(live.request)
            n_known_blocks = manager.can_allocate(nano)
            if n_known_blocks < 0:
                return
            n_uncomputed = len(nano) - n_known_blocks * manager.block_size
            self._queue.remove(live.queued)
            self._queue.charge(live.queued, n_tokens=n_uncomputed)
            live.queued.waited_s = self._clock() - live.queued.arrived_at_s
            self._waits_s.append(live.queued.waited_s)
            live.nano = nano
            self._by_nano[nano.seq_id] = live
            scheduler.add(nano)
            n_tokens += n_uncomputed

    def _sequence(self, request: EngineRequest) -> Any:
        return self._make_sequence(
            list(request.prompt_token_ids),
            temperature=temperature_for(request.sampling.temperature),
            max_tokens=request.max_new_tokens,
            salt=request.cache_salt,
            tags=request.cache_tags,
        )

    def _note_first(self, batch: SequenceOf[Any]) -> None:
        """Count the prompts of those that are scheduled for the first time."""
        for sequence in batch:
            live = self._by_nano[sequence.seq_id]
            if live.n_cached is None:
                live.n_cached = sequence.num_cached_tokens
                self._counters.n_prompt_tokens += sequence.num_prompt_tokens
                self._counters.n_cached_tokens += sequence.num_cached_tokens

    def _advance(self, live: _Live) -> None:
        """Report what a step appended to a sequence, if it did, and end it where it has met its
        end."""
        nano = live.nano
        new_ids = tuple(nano.token_ids[nano.num_prompt_tokens + live.n_reported :])
        if not new_ids:
            return  # a part of its prompt
        live.n_reported += len(new_ids)
        self._counters.n_completion_tokens += len(new_ids)
        self._queue.charge(live.queued, n_tokens=len(new_ids))
        reason = self._finish_reason(live, token_id=new_ids[-1])
        if reason is not None:
            self._counters.n_finished += 1
            self._end(live)
        self._outputs.append(
            self._output_of(
                live, token_ids=new_ids, finish_reason=reason, step=self._counters.n_steps + 1
            )
        )

    def _finish_reason(self, live: _Live, *, token_id: int) -> FinishReason | None:
        sampling = live.request.sampling
        if token_id in self.info.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        if token_id in sampling.stop_token_ids:
            return "stop"
        return "length" if live.nano.is_finished else None

    def _fail(self, live: _Live, *, error: EngineError) -> None:
        self._end(live)
        self._counters.n_failed += 1
        self._outputs.append(self._output_of(live, error=error))

    def _end(self, live: _Live) -> None:
        """Take a request out, wherever it stands; it holds nothing afterwards."""
        del self._live[live.request.key]
        if live.nano is None:
            self._queue.remove(live.queued)
            return
        del self._by_nano[live.nano.seq_id]
        self._scheduler.end(live.nano)

    def _note_step(
        self,
        batch: SequenceOf[Any],
        *,
        n_prefill_tokens: int,
        marks_s: tuple[float, float, float, float, float],
    ) -> None:
        self._counters.n_steps += 1
        self._counters.last_step_ms = (marks_s[-1] - marks_s[0]) * 1000.0
        self._log.add(
            StepRecord(
                marks_s=marks_s,
                n_sequences=len(batch),
                n_decode_tokens=0 if n_prefill_tokens else len(batch),
                n_prefill_tokens=n_prefill_tokens,
                n_draft_tokens=0,
                n_waiting=len(self._queue) + len(self._scheduler.waiting),
                n_blocks_free=len(self._scheduler.block_manager.free_block_ids),
            )
        )

    def _output_of(self, live: _Live, **fields: Any) -> SequenceOutput:
        return SequenceOutput(
            key=live.request.key,
            n_cached_tokens=live.n_cached or 0,
            n_completion_tokens=live.n_reported,
            waited_s=live.queued.waited_s,
            **fields,
        )

    def _take_outputs(self) -> list[SequenceOutput]:
        outputs, self._outputs = self._outputs, []
        return outputs
