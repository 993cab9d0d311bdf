"""Sequences that wait for a place in the batch: who is next, and who may wait at all.

The higher priority first. Within one priority, first what was preempted, the longest served ahead;
then the tenant that has had the least, in order of arrival. What a tenant has had is its virtual
token counter: prompt tokens computed and tokens generated, each divided by the weight of its
request. A tenant that comes to the queue anew is lifted to the least counter there, so that nobody
saves up service. (VTC: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024,
https://arxiv.org/abs/2401.00588; preemption and priorities are ours.)

While two tenants wait all the time with one priority, their counters therefore differ by no more
than the largest prompt and the answers of one full batch, divided by the weight. (The pool's size,
which the paper has here, bounds nothing where what was preempted keeps its tokens.)
"""

import math
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from heapq import heappop, heappush, heapreplace

from engine_service.errors import Overloaded
from engine_service.scheduling.sequence import Sequence

_RETRY_AFTER_S = 1.0
_MAX_IDLE_COUNTERS = 1024


class RequestQueue:
    """A bounded queue; what was preempted returns past the bounds if need be.

    admits_new: else only what was preempted is to go on.
    """

    def __init__(self, *, max_waiting: int, max_waiting_per_tenant: int) -> None:
        self.admits_new = True
        self._max_waiting = max_waiting
        self._max_waiting_per_tenant = max_waiting_per_tenant
        self._counters: dict[str, float] = {}
        self._n_waiting: Counter[str] = Counter()
        self._n_in_lines = 0
        self._classes: dict[int, _PriorityClass] = {}
        self._preempted: list[Sequence] = []
        self._last_tenant = ""
        self._first_expiry_s = math.inf
        self._n_counters_to_prune = _MAX_IDLE_COUNTERS

    def __len__(self) -> int:
        return self._n_in_lines + len(self._preempted)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for members in self._classes.values():
            for line in members.lines.values():
                yield from line.values()

    @property
    def by_tenant(self) -> Mapping[str, int]:
        """How many of each tenant's wait that were never admitted."""
        return self._n_waiting

    def append(self, sequence: Sequence) -> None:
        """Queue a new sequence; raises Overloaded where the queue or its tenant's part is full."""
        tenant = sequence.standing.tenant
        n_waiting, n_own = len(self), self._n_waiting[tenant]
        if n_waiting >= self._max_waiting:
            raise Overloaded(
                f"{n_waiting} requests are waiting already", retry_after_s=_RETRY_AFTER_S
            )
        if n_own >= self._max_waiting_per_tenant:
            raise Overloaded(
                f"{n_own} requests of this tenant are waiting already",
                retry_after_s=_RETRY_AFTER_S,
            )
        if not n_own:
            self._lift(tenant)
        members = self._classes.setdefault(
            sequence.standing.priority, _PriorityClass(self._counters)
        )
        members.append(sequence)
        self._n_waiting[tenant] += 1
        self._n_in_lines += 1
        self._first_expiry_s = min(self._first_expiry_s, sequence.expires_at_s)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a preempted sequence."""
        insort(self._preempted, sequence, key=_rank)
        self._first_expiry_s = min(self._first_expiry_s, sequence.expires_at_s)

    def head(self, *, first: AbstractSet[str] = frozenset()) -> Sequence:
        """Return who is next; there must be one. first: tenants who go before the others of the
        same priority."""
        priority = max(self._classes, default=None)
        if self._preempted and (
            priority is None or self._preempted[0].standing.priority >= priority
        ):
            return self._preempted[0]
        if priority is None:
            raise IndexError("nothing waits")
        return self._classes[priority].head(first)

    def next_up(self, *, first: AbstractSet[str]) -> Sequence | None:
        """Return who may be admitted next, as ``head`` has it; None where nobody may."""
        if self.admits_new:
            return self.head(first=first) if len(self) else None
        return self._preempted[0] if self._preempted else None

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        if sequence.seniority is not None:
            self._preempted.remove(sequence)
            return
        standing = sequence.standing
        members = self._classes[standing.priority]
        members.remove(sequence)
        if not members.lines:
            del self._classes[standing.priority]
        self._n_in_lines -= 1
        self._n_waiting[standing.tenant] -= 1
        if not self._n_waiting[standing.tenant]:
            del self._n_waiting[standing.tenant]
        self._last_tenant = standing.tenant

    def expired(self, now_s: float) -> list[Sequence]:
        """Return those that wait beyond their deadline."""
        if now_s < self._first_expiry_s:
            return []
        found = [sequence for sequence in self if sequence.expires_at_s <= now_s]
        self._first_expiry_s = min(
            (sequence.expires_at_s for sequence in self if sequence.expires_at_s > now_s),
            default=math.inf,
        )
        return found

    def oldest_arrival_s(self, *, min_priority: int) -> float | None:
        """Return when the first came of those that wait for the first time, with this priority or
        a higher one; None where none waits. A line is in order of arrival: its first tells."""
        return min(
            (
                next(iter(line.values())).arrived_at_s
                for priority, members in self._classes.items()
                if priority >= min_priority
                for line in members.lines.values()
            ),
            default=None,
        )

    def charge(self, sequence: Sequence, *, n_tokens: int) -> None:
        """Count service to the sequence's tenant."""
        standing = sequence.standing
        counter = self._counters.get(standing.tenant, 0.0)
        self._counters[standing.tenant] = counter + n_tokens / standing.weight

    def _lift(self, tenant: str) -> None:
        floor = self._counters.get(self._last_tenant, 0.0)
        if self._classes:
            floor = min(members.least_counter() for members in self._classes.values())
        self._counters[tenant] = max(self._counters.get(tenant, 0.0), floor)
        if len(self._counters) > self._n_counters_to_prune:
            # An idle tenant at or below the floor would be lifted to it: nothing is forgotten.
            self._counters = {
                name: counter
                for name, counter in self._counters.items()
                if counter > floor or name in self._n_waiting or name in (tenant, self._last_tenant)
            }
            for members in self._classes.values():
                members.counters = self._counters
            self._n_counters_to_prune = _MAX_IDLE_COUNTERS + 2 * len(self._counters)


class _PriorityClass:
    """Waiting sequences of one priority, a line for each tenant.

    Invariants: no line is empty. Each line has one heap entry, made when its counter was at most
    what it is now, so that an entry on top that is true is the least. (Counters only grow.)
    """

    def __init__(self, counters: dict[str, float]) -> None:
        self.lines: dict[str, OrderedDict[int, Sequence]] = {}
        self.counters = counters
        self._heap: list[tuple[float, int, str]] = []
        self._in_heap: set[str] = set()

    def append(self, sequence: Sequence) -> None:
        tenant = sequence.standing.tenant
        self.lines.setdefault(tenant, OrderedDict())[sequence.key] = sequence
        if tenant not in self._in_heap:
            self._in_heap.add(tenant)
            heappush(self._heap, (self.counters[tenant], sequence.key, tenant))

    def remove(self, sequence: Sequence) -> None:
        line = self.lines[sequence.standing.tenant]
        del line[sequence.key]
        if not line:
            del self.lines[sequence.standing.tenant]

    def head(self, first: AbstractSet[str]) -> Sequence:
        if here := [tenant for tenant in first if tenant in self.lines]:
            tenant = min(here, key=lambda each: (self.counters[each], each))
            return next(iter(self.lines[tenant].values()))
        self._settle_top()
        line = self.lines[self._heap[0][2]]
        return line[next(iter(line))]

    def least_counter(self) -> float:
        self._settle_top()
        return self._heap[0][0]

    def _settle_top(self) -> None:
        """Make the top entry true: lines that are gone leave, counters that grew move down."""
        while True:
            counter, key, tenant = self._heap[0]
            line = self.lines.get(tenant)
            if line is None:
                heappop(self._heap)
                self._in_heap.remove(tenant)
                continue
            now = (self.counters[tenant], next(iter(line)), tenant)
            if now == (counter, key, tenant):
                return
            heapreplace(self._heap, now)


def _rank(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.rank
