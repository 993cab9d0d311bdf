"""Whether a replica is worth a request, judged by how the last ones ended there. No clock of its
own: whoever asks says what time it is."""

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

CONSECUTIVE_FAILURES: Final = 3
FAILURE_SHARE: Final = 0.5
WINDOW: Final = 20  # outcomes that the share is of
LEAST_OUTCOMES: Final = 10  # before which it says nothing
FIRST_OPEN_S: Final = 1.0
LONGEST_OPEN_S: Final = 30.0

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One request as the breaker counts it.

    is_probe: it was sent though the breaker was not closed. generation: how it ends is heard only
    until the breaker changes its state, since then it tells of the time before.
    """

    generation: int
    is_probe: bool


class Breaker:
    """A circuit breaker (Nygard, "Release It!", 2007): closed lets all through; failures open it;
    after a pause, twice as long each time, one request at a time may try."""

    def __init__(self) -> None:
        self._generation = 0
        self._n_consecutive = 0
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._open_until_s: float | None = None
        self._open_s = 0.0
        self._n_probes = 0

    def state(self, now_s: float) -> BreakerState:
        if self._open_until_s is None:
            return "closed"
        return "open" if now_s < self._open_until_s else "half_open"

    def admits(self, now_s: float) -> bool:
        """Return whether a request may go there: when half open, one that nobody is ahead of."""
        state = self.state(now_s)
        return state == "closed" or (state == "half_open" and not self._n_probes)

    @property
    def opened_until_s(self) -> float:
        """When it may be tried again, or might have been; the least bad has the earliest."""
        return self._open_until_s or 0.0

    def begin(self) -> Trial:
        """Count a request that is sent there, whether or not it is admitted: one that has nowhere
        else to go tries as well."""
        is_probe = self._open_until_s is not None
        self._n_probes += is_probe
        return Trial(generation=self._generation, is_probe=is_probe)

    def leave(self, trial: Trial) -> None:
        """End a request's trial, whatever came of it; once each."""
        if trial.is_probe and trial.generation == self._generation:
            self._n_probes -= 1

    def succeeded(self, trial: Trial) -> None:
        if trial.generation != self._generation:
            return
        if trial.is_probe:
            self._change(open_until_s=None)
            self._open_s = 0.0
        else:
            self._n_consecutive = 0
            self._outcomes.append(True)

    def failed(self, trial: Trial, *, now_s: float, is_gone: bool = False) -> None:
        """is_gone: the replica is known to be away, which needs no second failure."""
        if trial.generation != self._generation:
            return
        self._n_consecutive += 1
        self._outcomes.append(False)
        if trial.is_probe or is_gone or self._has_failed_enough():
            self._open_s = min(max(2 * self._open_s, FIRST_OPEN_S), LONGEST_OPEN_S)
            self._change(open_until_s=now_s + self._open_s)

    def _has_failed_enough(self) -> bool:
        n_failed = self._outcomes.count(False)
        return self._n_consecutive >= CONSECUTIVE_FAILURES or (
            len(self._outcomes) >= LEAST_OUTCOMES
            and n_failed >= FAILURE_SHARE * len(self._outcomes)
        )

    def _change(self, *, open_until_s: float | None) -> None:
        self._generation += 1
        self._open_until_s = open_until_s
        self._n_probes = self._n_consecutive = 0
        self._outcomes.clear()
