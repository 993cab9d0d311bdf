"""When an engine process is started, killed and started again. Pure decisions: what happened goes
in, what to do comes out; the clock is the caller's and nothing here does I/O."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from apps.engines.models import EngineProcess

State = EngineProcess.State

# sysexits.h EX_CONFIG: the engine says that starting it again would fail in the same way.
EXIT_CONFIG: Final = 78

_ALIVE: Final = frozenset({State.STARTING, State.READY, State.UNRESPONSIVE, State.DRAINING})
_WAITING: Final = frozenset({State.BACKING_OFF, State.CRASH_LOOP})


class Action(Enum):
    """What the supervisor has to do now."""

    NONE = "none"
    FETCH = "fetch"
    SPAWN = "spawn"
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """tick_s: the longest time between two decisions; longer gaps mean that the agent itself slept
    and are not held against the engine. stop_grace_s covers the engine's own drain.
    breaker_crashes: after so many in a row, none of which came after ``healthy_after_s`` of work,
    the engine is left alone for breaker_pause_s; then one start decides. turn_s: of an engine that
    shares a device, while another waits for it; shared_ping_every_s: of such engines, so that they
    take turns without delay."""

    tick_s: float = 0.5
    ping_every_s: float = 1.0
    ping_deadline_s: float = 5.0
    start_deadline_s: float = 600.0
    drain_s: float = 10.0
    stop_grace_s: float = 15.0
    backoff_first_s: float = 0.5
    backoff_most_s: float = 30.0
    healthy_after_s: float = 60.0
    breaker_crashes: int = 5
    breaker_pause_s: float = 600.0
    turn_s: float = 10.0
    shared_ping_every_s: float = 0.2


class Lifecycle:
    """One slot for an engine process, through all its starts.

    Invariants: SPAWN is answered only while no process lives, and only once its files are there;
    after a failure for configuration nothing is spawned any more; a stop that was asked for ends in
    STOPPED. Only an engine's own ends count for the breaker: a start that the system, the database
    or the storage of files refused says nothing of it.
    """

    def __init__(self, timings: Timings, *, needs_files: bool = False) -> None:
        self.timings = timings
        self._needs_files = needs_files
        self.state: State = State.STOPPED
        self.n_restarts = 0
        self.last_error = ""
        self._stop_asked = False
        self._n_failures = 0
        self._n_crashes = 0
        self._resume_at = 0.0
        self._spawned_at = 0.0
        self._ready_at: float | None = None
        self._term_at: float | None = None
        self._kill_sent = False
        self._silent_s = 0.0
        self._ticked_at: float | None = None

    @property
    def was_killed(self) -> bool:
        """The end that comes is of our doing; ``last_error`` says why."""
        return self._kill_sent

    def is_crash(self, code: int) -> bool:
        """Whether an end with this code is one that nobody asked for; ask before ``exited``."""
        return code not in (0, EXIT_CONFIG) and not self._stop_asked

    def resumes_in_s(self, now: float) -> float | None:
        """Until it is tried again by itself; None where it runs, or is not tried again."""
        if self.state not in _WAITING:
            return None
        return max(0.0, self._resume_at - now)

    @property
    def is_over(self) -> bool:
        """A stop was asked for and no process is left."""
        return self._stop_asked and self.state is State.STOPPED

    def stop(self) -> None:
        """Ask for the end; ``decide`` then leads there."""
        self._stop_asked = True

    def decide(self, now: float) -> Action:
        elapsed = 0.0 if self._ticked_at is None else now - self._ticked_at
        self._ticked_at = now
        if self.state not in _ALIVE:
            return self._decide_without_process(now)
        if self._kill_sent:
            return Action.NONE
        if self._stop_asked and self._term_at is None:
            self.state = State.DRAINING
            self._term_at = now
            return Action.TERMINATE
        if self._term_at is not None:
            return self._kill_if(now - self._term_at >= self.timings.stop_grace_s)
        if self.state is State.STARTING:
            late = now - self._spawned_at >= self.timings.start_deadline_s
            if late:
                self.last_error = f"did not become ready in {self.timings.start_deadline_s:.0f} s"
            return self._kill_if(late)
        self._silent_s += min(elapsed, 2 * self.timings.tick_s)
        if self._silent_s < self.timings.ping_deadline_s:
            return Action.NONE
        self.state = State.UNRESPONSIVE
        self.last_error = f"did not answer a ping in {self.timings.ping_deadline_s:.0f} s"
        return self._kill_if(True)

    def fetching(self) -> None:
        self.state = State.FETCHING

    def fetched(self) -> None:
        """Its files are there, and stay."""
        self._needs_files = False
        self._n_failures = 0
        self.last_error = ""

    def fetch_failed(self, now: float, *, reason: str, is_final: bool) -> None:
        """is_final: trying again would end in the same way."""
        self.last_error = reason
        if is_final:
            self.state = State.FAILED
        else:
            self._back_off(now)

    def waits_for_memory(self) -> None:
        """It is due, and others have the memory that it needs to start."""
        self.state = State.WAITING

    def spawned(self, now: float) -> None:
        self.state = State.STARTING
        self._spawned_at = now
        self._ready_at = self._term_at = None
        self._kill_sent = False
        self._silent_s = 0.0

    def ponged(self, now: float, *, draining: bool) -> None:
        """The step loop answered. ``draining``: someone else told the engine to end."""
        self._silent_s = 0.0
        if draining and self._term_at is None:
            self.state = State.DRAINING
            self._term_at = now
        elif self.state is State.STARTING:
            self.state = State.READY
            self._ready_at = now

    def spawn_failed(self, now: float, *, reason: str) -> None:
        self.last_error = reason
        self.n_restarts += 1
        self._back_off(now)

    def exited(self, code: int, now: float, *, reason: str) -> None:
        """The process is gone. ``reason`` is kept unless what led to our own kill is known."""
        is_crash = self.is_crash(code)
        if self._stop_asked:
            self.state = State.STOPPED
            return
        if not self.was_killed:
            self.last_error = reason
        if code == EXIT_CONFIG:
            self.state = State.FAILED
            return
        healthy = (
            self._ready_at is not None and now - self._ready_at >= self.timings.healthy_after_s
        )
        if healthy:
            self._n_failures = self._n_crashes = 0
        self._n_crashes += is_crash  # who ends well was asked to, by someone else
        self.n_restarts += 1
        self._back_off(now)
        if self._n_crashes >= self.timings.breaker_crashes:
            self._break(now)

    def _decide_without_process(self, now: float) -> Action:
        if self._stop_asked:
            self.state = State.STOPPED
            return Action.NONE
        is_fetched = self.state is State.FETCHING and not self._needs_files
        is_due = self.state in _WAITING and now >= self._resume_at
        is_next = self.state in (State.STOPPED, State.WAITING)
        if is_fetched or is_due or is_next:
            return Action.FETCH if self._needs_files else Action.SPAWN
        return Action.NONE

    def _kill_if(self, due: bool) -> Action:
        if not due:
            return Action.NONE
        self._kill_sent = True
        return Action.KILL

    def _back_off(self, now: float) -> None:
        delay_s = self.timings.backoff_first_s * 2.0 ** min(self._n_failures, 20)
        self._n_failures += 1
        self._resume_at = now + min(delay_s, self.timings.backoff_most_s)
        self.state = State.BACKING_OFF

    def _break(self, now: float) -> None:
        """Leave it alone: the crashes before the next start still count, so that one more is
        enough."""
        self.state = State.CRASH_LOOP
        self._resume_at = now + self.timings.breaker_pause_s
        self.last_error = (
            f"{self._n_crashes} crashes in a row; left alone for "
            f"{_minutes(self.timings.breaker_pause_s)}, or until it is restarted. "
            f"The last one: {self.last_error}"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
