"""How a step is shared while one tenant has most of the batch and another asks for little.

Who is admitted next is the queue's to say (``request_queue``), and fair. But what a flooding tenant
has in the batch makes every step long for the others, and takes the places that they would come to.
So while somebody is here, or was some seconds ago, who has less than half of their share of what
runs and waits,

1. a step decodes all of their rows, and of the others only so many as take about as long as its
   fixed part; each tenant has its share of these by weight, what one leaves is the others', and of
   one's own those are next whose last step is the longest ago. Where rows cost hardly anything,
   there is no such bound;
2. a prompt of such a tenant has the next step without the rows and prompts of who has more than
   their share, though never two steps in a row;
3. such a tenant is admitted first. What the others are held back is not counted as service, so
   that by the queue's count who asks for little would soon be the one who had most;
4. an eighth of the places is kept for those who have no more than their share.

Whoever floods pays with some of their throughput for steps that others need not wait for; where all
flood, or one is alone, nothing is held back. Everybody with rows has one in every other step at
least.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from engine_service.scheduling.drafting import MAX_FIXED_TOKENS, StepCost
from engine_service.scheduling.sequence import Sequence

_PRESENT_S: Final = 5.0
_LITTLE: Final = 0.5
_MIN_ROWS: Final = 4
_KEPT_PART: Final = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step computes. left_out: ``id`` of the sequences that do not decode. guests: whose
    prompts alone are computed; None is everyone's."""

    left_out: frozenset[int] = frozenset()
    guests: frozenset[str] | None = None

    def takes_prompt(self, sequence: Sequence) -> bool:
        return self.guests is None or sequence.standing.tenant in self.guests


class Sharing:
    """cost: of decodes, which says how many rows are cheap."""

    def __init__(self, *, cost: StepCost, max_sequences: int) -> None:
        self._cost = cost
        self._most_places = max(1, max_sequences - max_sequences // _KEPT_PART)
        self._seen_s: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._n_steps = 0
        self._had_guests = False
        self._decoding: list[Sequence] = []
        self._n_rows = _MIN_ROWS
        self._greedy: set[str] = set()
        self._little: set[str] = set()

    def note(self, sequence: Sequence, *, now_s: float) -> None:
        """Remember that a tenant is here."""
        self._seen_s[sequence.standing.tenant] = now_s
        self._weights[sequence.standing.tenant] = sequence.standing.weight

    def may_enter(self, sequence: Sequence, *, running: SequenceOf[Sequence]) -> bool:
        """Return whether its tenant may take one more place."""
        return len(running) < self._most_places or sequence.standing.tenant not in self._greedy

    def look(
        self, running: SequenceOf[Sequence], *, waiting: Mapping[str, int], now_s: float
    ) -> None:
        """Judge who floods and who asks for little, for the step to come. waiting: how many of each
        tenant's."""
        self._n_steps += 1
        self._forget(running, now_s=now_s)
        if len(self._seen_s) < 2:
            self._greedy, self._little = set(), set()
            return
        self._decoding = [each for each in running if each.is_decoding]
        counts = Counter(each.standing.tenant for each in running) + Counter(waiting)
        each_weighs = counts.total() / sum(self._weights.values())
        shares = {name: each_weighs * weight for name, weight in self._weights.items()}
        self._n_rows = max(_MIN_ROWS, round(self._cost.fixed_tokens))
        self._greedy = {n for n, share in shares.items() if counts[n] > max(share, self._n_rows)}
        self._little = {n for n, share in shares.items() if counts[n] < _LITTLE * share}
        if not self._little or not self._greedy:
            self._greedy, self._little = set(), set()

    @property
    def first(self) -> AbstractSet[str]:
        """Who is admitted before the others."""
        return self._little

    def turn(self, running: SequenceOf[Sequence], *, next_up: Sequence | None) -> Turn:
        """Return what the next step computes of what runs, as ``look`` judged it. next_up: is
        admitted next."""
        if not self._greedy:
            self._had_guests = False
            return Turn()
        prompts = [each for each in (*running, next_up) if each and not each.is_decoding]
        guests = self._little & {each.standing.tenant for each in prompts}
        if guests and not self._had_guests:
            self._had_guests = True
            chosen = [each for each in self._decoding if each.standing.tenant not in self._greedy]
            return Turn(self._left_out(chosen), frozenset(guests))
        self._had_guests = False
        is_cheap = self._cost.fixed_tokens >= MAX_FIXED_TOKENS
        if is_cheap or len(self._decoding) <= self._n_rows:
            return Turn()
        return Turn(self._left_out(self._in_turn()))

    def _forget(self, running: Iterable[Sequence], *, now_s: float) -> None:
        for sequence in running:
            self.note(sequence, now_s=now_s)
        if len(self._seen_s) > 1:
            gone = [name for name, at_s in self._seen_s.items() if at_s < now_s - _PRESENT_S]
            for name in gone:
                del self._seen_s[name], self._weights[name]

    def _left_out(self, chosen: Iterable[Sequence]) -> frozenset[int]:
        for sequence in chosen:
            sequence.stepped_at = self._n_steps
        return frozenset(id(each) for each in self._decoding if each.stepped_at != self._n_steps)

    def _in_turn(self) -> list[Sequence]:
        lines: dict[str, list[Sequence]] = {}
        for sequence in self._decoding:
            lines.setdefault(sequence.standing.tenant, []).append(sequence)
        chosen = [each for name in self._little for each in lines.pop(name, ())]
        left, weight = float(self._n_rows), sum(self._weights[name] for name in lines)
        # Who needs least for their weight first: what they leave is known then.
        for name in sorted(lines, key=lambda each: len(lines[each]) / self._weights[each]):
            n_own = max(1, round(left * self._weights[name] / weight))
            mine = sorted(lines[name], key=_longest_waiting)[:n_own]
            chosen += mine
            left, weight = max(0.0, left - len(mine)), weight - self._weights[name]
        return chosen


def _longest_waiting(sequence: Sequence) -> tuple[int, ...]:
    """Higher priority first, then whose last step is the longest ago, then rank."""
    return -sequence.standing.priority, sequence.stepped_at, *sequence.rank[1:]
