"""Which of the engines that share a device may have its memory: those that sleep, by turns. Pure
decisions: what was seen of engines goes in, who may hold memory comes out; the clock is the
caller's and nothing here does I/O.

1. Leave is given before memory is taken, and counts as used until the engine has said that it gave
   all of it back, or has ended. What has leave never is more than there is room for; alone, an
   engine may try whatever the room.
2. Who waits, to be started or to wake, waits in one line a device: the longest first, and nobody
   behind it goes before it. Who is on several devices stands in the line of each, and gets leave
   for all of them at once or for none: nobody holds one while it waits for another.
3. For the first in line those without work go, the one that had none for the longest first; then
   those whose turn was ``turn_s`` or longer, the longest first. A turn begins when its engine is
   awake. One that starts is left alone.
4. Whoever is told to go finishes what has begun, begins nothing new, gives its memory back, and
   stands in line again if it has more to do.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from apps.engines.health import EngineHealth
from apps.engines.types import Share, Sharing


class Turn:
    """What is known of one engine, from before its start until after its end. ``may_hold`` is for
    its supervisor to pass on; the others of this module read the rest.

    share: None where it shares nothing; it may then have what it wants. holds: it has memory, or
    leave to take it. is_starting: from when it asked for a start until its first answer. changed:
    called when ``may_hold`` became another.
    """

    def __init__(
        self, *, decide: Callable[[], None], clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self.share: Share | None = None
        self.is_contended = False
        self.may_hold = False
        self.holds = False
        self.is_starting = False
        self.is_idle = False
        self.worked_at = clock()
        self.began_at = 0.0
        self.waits_since: float | None = None
        self._decide = decide
        self._clock = clock
        self._changed = changed

    @property
    def devices(self) -> tuple[int, ...]:
        return () if self.share is None else self.share.device_ids

    @property
    def takes_turns(self) -> bool:
        return self.share is not None and self.share.sleeps

    def may_start(self) -> bool:
        """Stand in line for a start; return whether it is its turn."""
        self.is_starting = True
        self._want()
        self._decide()
        return self.may_hold

    def ended(self) -> None:
        """It has no process, and therefore no memory."""
        self.may_hold = self.holds = self.is_starting = False
        self.waits_since = None
        self._decide()

    def seen(self, health: EngineHealth, *, told: bool | None) -> None:
        """Take in an engine's answer. told: what it was told when it was asked, None being as good
        as leave; one that is to be told something else since is asked again."""
        if self.may_hold != (told is not False):
            return
        now = self._clock()
        self.is_starting = False
        self.is_idle = not (health.n_running or health.n_waiting)
        if not self.is_idle:
            self.worked_at = now
            if health.is_asleep:
                self.began_at = now  # its turn begins once it is awake
        if not self.may_hold:
            self.holds = not health.is_given_back
            if health.waits_for_memory:
                self._want()
            else:
                self.waits_since = None
        self._decide()

    def give(self, now: float) -> None:
        self.holds = True
        self.is_idle = False
        self.began_at = now
        self.waits_since = None
        self._say(True)

    def take_back(self) -> None:
        self._say(False)

    def is_over(self, now: float, *, turn_s: float) -> bool:
        """Whether it has to go if somebody waits."""
        if self.is_starting:
            return False
        return self.is_idle or now - self.began_at >= turn_s

    def _want(self) -> None:
        if self.waits_since is None and not self.may_hold:
            self.waits_since = self._clock()

    def _say(self, may_hold: bool) -> None:
        if may_hold != self.may_hold:
            self.may_hold = may_hold
            self._changed()


class Turns:
    """All engines of an agent, by their slots. turn_s: how long a busy one may go on taking new
    requests while another waits."""

    def __init__(self, *, turn_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._turn_s = turn_s
        self._clock = clock
        self._turns: dict[int, Turn] = {}
        self._room_bytes: Mapping[int, int] = {}

    def begin(self, process_id: int, *, share: Share | None, changed: Callable[[], None]) -> Turn:
        """Make the turn of an engine that is to start in a slot."""
        turn = Turn(decide=self.decide, clock=self._clock, changed=changed)
        turn.share = share
        self._turns[process_id] = turn
        self._note_contention()
        return turn

    def end(self, process_id: int) -> None:
        """Forget an engine that has ended for good."""
        self._turns.pop(process_id, None)
        self._note_contention()
        self.decide()

    def share(self, sharing: Sharing, *, going_on: Iterable[int]) -> None:
        """Take what is shared now by the engines that are to go on; the others have what they had
        until they have ended."""
        self._room_bytes = sharing.room_bytes
        for process_id in going_on:
            if (turn := self._turns.get(process_id)) is not None:
                turn.share = sharing.shares.get(process_id)
        self._note_contention()
        self.decide()

    def decide(self) -> None:
        """Give leave to whoever can have it, and take it from whoever has to go for another."""
        now = self._clock()
        waiting = [turn for turn in self._turns.values() if turn.waits_since is not None]
        held_up: set[int] = set()
        for turn in sorted(waiting, key=lambda turn: turn.waits_since or 0.0):
            if held_up & {*turn.devices}:
                continue
            if all(self._is_room(turn, device_id) for device_id in turn.devices):
                turn.give(now)
                continue
            held_up |= {*turn.devices}
            for device_id in turn.devices:
                self._make_room(turn, device_id, now=now)

    def _is_room(self, turn: Turn, device_id: int) -> bool:
        others = [other for other in self._holders(device_id) if other is not turn]
        return not others or self._lacking(turn, device_id, others) <= 0

    def _make_room(self, turn: Turn, device_id: int, *, now: float) -> None:
        """Have as many go as are in its way, so far as any has to."""
        others = [other for other in self._holders(device_id) if other is not turn]
        lacking = self._lacking(turn, device_id, [other for other in others if other.may_hold])
        going = [
            other for other in others if other.may_hold and other.is_over(now, turn_s=self._turn_s)
        ]
        for other in sorted(going, key=_who_goes_first):
            if lacking <= 0:
                break
            lacking -= _n_bytes(other)
            other.take_back()

    def _lacking(self, turn: Turn, device_id: int, others: Iterable[Turn]) -> int:
        own = _n_bytes(turn) if turn.takes_turns else 0
        room = self._room_bytes.get(device_id, 0)
        return own + sum(map(_n_bytes, others)) - room

    def _holders(self, device_id: int) -> list[Turn]:
        """Return those that take turns there and have memory, or leave to take it."""
        return [
            turn
            for turn in self._turns.values()
            if turn.takes_turns and turn.holds and device_id in turn.devices
        ]

    def _note_contention(self) -> None:
        for turn in self._turns.values():
            turn.is_contended = turn.takes_turns and any(
                {*turn.devices} & {*other.devices}
                for other in self._turns.values()
                if other is not turn
            )


def _n_bytes(turn: Turn) -> int:
    return 0 if turn.share is None else turn.share.n_bytes


def _who_goes_first(turn: Turn) -> tuple[bool, float]:
    return (not turn.is_idle, turn.worked_at if turn.is_idle else turn.began_at)
