"""The step loop: one thread that alone drives the backend, fed through a bounded inbox.

Knows requests as keys and token ids. No tokenizing, no JSON and no socket happens here.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine_service.backends.base import (
    Backend,
    EmbeddingRequest,
    EngineRequest,
    SequenceOutput,
)
from engine_service.errors import EngineError, EngineLost, Overloaded
from engine_service.protocol import EngineStats

MAX_FAILED_STEPS_IN_A_ROW = 5
_RETRY_AFTER_S = 1.0
# Who shares a device hears of its agent more often; after such a silence it is on its own.
_AGENT_SILENT_S = 30.0
_LOOK_S = 1.0
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096

logger = logging.getLogger(__name__)

StatsCallback = Callable[[EngineStats], None]
PurgeCallback = Callable[[int], None]


@dataclass(slots=True)
class _Inbox:
    requests: list[EngineRequest | EmbeddingRequest] = field(default_factory=list)
    aborts: list[tuple[int, int | None]] = field(default_factory=list)
    pings: list[tuple[StatsCallback, bool | None]] = field(default_factory=list)
    purges: list[tuple[str, PurgeCallback]] = field(default_factory=list)

    def is_empty(self) -> bool:
        return not (self.requests or self.aborts or self.pings or self.purges)


class Engine:
    """Runs ``backend`` on its own thread.

    on_outputs: called on that thread, once after each step that changed something. on_fatal: called
    once when the loop ends by an error, or the backend is lost and the loop may hang; ``fatal``
    keeps it. max_inbox: most requests that wait for the next step to take them. sleep_after_s:
    after so long without work the backend rests; None: never.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        on_outputs: Callable[[Sequence[SequenceOutput]], None],
        max_inbox: int,
        on_fatal: Callable[[BaseException], None] | None = None,
        sleep_after_s: float | None = None,
    ) -> None:
        self.fatal: BaseException | None = None
        self._backend = backend
        self._on_outputs = on_outputs
        self._on_fatal = on_fatal
        self._max_inbox = max_inbox
        self._inbox = _Inbox()
        self._news = threading.Condition()
        self._is_stopping = False
        self._n_failed_in_a_row = 0
        self._sleep_after_s = sleep_after_s
        self._worked_at_s = time.monotonic()
        self._is_at_rest = False
        self._withheld_at_s: float | None = None
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)

    def start(self) -> None:
        self._backend.watch(self._fail)
        self._thread.start()

    def submit(self, request: EngineRequest | EmbeddingRequest) -> None:
        """Hand over a request from any thread, without waiting.

        What the backend finds wrong with it comes back as an output with ``error``.

        Raises:
            Overloaded: the inbox is full, or the engine is stopping.
            EngineError: the engine is dead.
        """
        with self._news:
            if self.fatal is not None:
                raise EngineError(f"the engine has failed: {self.fatal}")
            if self._is_stopping:
                raise Overloaded("the engine is stopping", retry_after_s=_RETRY_AFTER_S)
            if len(self._inbox.requests) >= self._max_inbox:
                raise Overloaded("the engine's inbox is full", retry_after_s=_RETRY_AFTER_S)
            self._inbox.requests.append(request)
            self._news.notify()

    def abort(self, key: int, *, choice: int | None = None) -> None:
        """End a request, or one answer of it, before the next step; from any thread, idempotent."""
        with self._news:
            self._inbox.aborts.append((key, choice))
            self._news.notify()

    def ping(self, callback: StatsCallback, *, may_hold_memory: bool | None = None) -> None:
        """Have the step thread call ``callback`` with the engine's counters, once the backend knows
        whether it may hold its device's memory; None says nothing of that."""
        with self._news:
            self._inbox.pings.append((callback, may_hold_memory))
            self._news.notify()

    def purge(self, tag: str, callback: PurgeCallback) -> None:
        """Have the step thread forget a tag's cached blocks and call ``callback`` with how many."""
        with self._news:
            self._inbox.purges.append((tag, callback))
            self._news.notify()

    def stop(self, *, timeout_s: float) -> bool:
        """End the loop after the current step; return whether it ended in time.

        What is still live gets no further output: a caller that drains does so before.
        """
        with self._news:
            self._is_stopping = True
            self._news.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (inbox := self._next_inbox()) is not None:
                outputs = self._accept(inbox)
                self._mind_silence()
                outputs += self._step()
                if outputs:
                    self._on_outputs(outputs)
        except BaseException as error:  # the thread's last act is to say that it ends
            logger.exception("the step loop has ended")
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._news:
            if self.fatal is not None:
                return
            self.fatal = error
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _next_inbox(self) -> _Inbox | None:
        """Wait until there is something to do, be it to rest; None when the engine stops."""
        with self._news:
            while self._inbox.is_empty() and not self._is_stopping and not self._backend.has_work():
                if not self._news.wait(self._looks_in_s()):
                    break
            if self._is_stopping:
                return None
            inbox, self._inbox = self._inbox, _Inbox()
            return inbox

    def _accept(self, inbox: _Inbox) -> list[SequenceOutput]:
        refused = []
        for request in inbox.requests:
            try:
                self._backend.add(request)
            except EngineError as error:
                refused.append(SequenceOutput(key=request.key, error=error))
            except Exception as error:
                logger.exception("request %d could not be added", request.key)
                refused.append(SequenceOutput(key=request.key, error=EngineError(str(error))))
        for key, choice in inbox.aborts:
            self._backend.abort(key, choice=choice)
        for tag, purged in inbox.purges:
            purged(self._backend.purge(tag))
        for callback, may_hold_memory in inbox.pings:
            if may_hold_memory is not None:
                self._withheld_at_s = None if may_hold_memory else time.monotonic()
                self._backend.lend(may_hold=may_hold_memory)
            callback(self._stats())
        return refused

    def _mind_silence(self) -> None:
        """Whoever said that others have the memory, and is not heard of any more, is gone."""
        since_s = self._withheld_at_s
        if since_s is not None and time.monotonic() - since_s >= _AGENT_SILENT_S:
            logger.warning("the agent is silent: the device's memory is taken where it is free")
            self._withheld_at_s = None
            self._backend.lend(may_hold=True)

    def _step(self) -> Sequence[SequenceOutput]:
        if not self._backend.has_work():
            if self._rests_in_s() == 0.0:
                self._rest()
            return ()
        outputs = self._compute()
        self._worked_at_s = time.monotonic()
        self._is_at_rest = False
        return outputs

    def _compute(self) -> Sequence[SequenceOutput]:
        try:
            outputs = self._backend.step()
        except EngineLost:
            raise
        except Exception as error:
            self._n_failed_in_a_row += 1
            if self._n_failed_in_a_row >= MAX_FAILED_STEPS_IN_A_ROW:
                raise
            logger.exception("a step failed; the requests in it are ended")
            return self._backend.fail_running(EngineError(f"the step failed: {error}"))
        self._n_failed_in_a_row = 0
        return outputs

    def _looks_in_s(self) -> float | None:
        """Return when there may be something to do though nothing comes; None: never."""
        rests_in_s = self._rests_in_s()
        if self._withheld_at_s is None:
            return rests_in_s
        return _LOOK_S if rests_in_s is None else min(rests_in_s, _LOOK_S)

    def _rests_in_s(self) -> float | None:
        """Return how long the backend may still be without work; None: for ever."""
        if self._sleep_after_s is None or self._is_at_rest:
            return None
        return max(0.0, self._worked_at_s + self._sleep_after_s - time.monotonic())

    def _rest(self) -> None:
        """Between two parts of it, which are short, requests and pings get their turn."""
        try:
            self._is_at_rest = not self._backend.rest()
        except EngineLost:
            raise
        except Exception:  # such as no memory on the host: it can work, and tries again later
            logger.exception("the engine cannot sleep")
            self._worked_at_s = time.monotonic()

    def _stats(self) -> EngineStats:
        stats = self._backend.stats()
        return msgspec.structs.replace(
            stats,
            uptime_s=time.monotonic() - self._started_at,
            # Beside what other processes of the backend hold.
            rss_bytes=stats.rss_bytes + int(_STATM.read_text().split()[1]) * _PAGE_BYTES,
        )
