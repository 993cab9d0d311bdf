"""Which of a deployment's ready replicas takes a request: the one with the fewest outstanding
tokens, or one that has read such a prompt before, as long as that keeps the load even. In memory
and without I/O; it knows what this process sent, and nothing of others."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from apps.deployments.types import ReplicaEndpoint
from apps.routing.breaker import Breaker, BreakerState, Trial
from apps.routing.prefixes import NO_PREFIX, Holder, Prefix, PrefixIndex

# How far over the mean a replica may be for the sake of a prefix: "Consistent Hashing with Bounded
# Loads" (Mirrokni, Thorup, Zadimoghaddam; SODA 2018), with kept prefixes in place of hashes.
OVER_MEAN: Final = 0.25
READING_WORTH: Final = 0.1  # of a token that need not be read, beside one that is to be made
# Of a prompt, at least so much must have been read before: the first words are often everybody's.
LEAST_SHARE: Final = 0.5
# Of an answer count no more: what a request may produce, few do, and all that run share each step.
MAX_COUNTED_NEW_TOKENS: Final = 512
HALF_LIFE_S: Final = 30.0  # of what was given, which decides between replicas that are as loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request will ask of a replica, as far as it is known."""

    n_prompt_tokens: int = 0
    n_new_tokens: int = 1
    prefix: Prefix = NO_PREFIX

    def n_to_do(self, *, read_before: float) -> int:
        """Return the tokens that it costs a replica that has read so much of the prompt before."""
        return round(self.n_prompt_tokens * (1 - read_before)) + self.n_new_tokens


NO_DEMAND: Final = Demand()


def counted_new_tokens(max_new_tokens: int | None, *, n_answers: int) -> int:
    """Return what the answers of a request count. max_new_tokens: of each; None for no bound."""
    if max_new_tokens is None:
        return n_answers * MAX_COUNTED_NEW_TOKENS
    return n_answers * min(max_new_tokens, MAX_COUNTED_NEW_TOKENS)


@dataclass(slots=True)
class _Replica:
    """What one start of an engine has to do for this process, and how it has done."""

    rank: float
    breaker: Breaker = field(default_factory=Breaker)
    n_places: int = 0
    n_outstanding: int = 0
    given: float = 0.0
    given_at_s: float = 0.0

    def given_lately(self, now_s: float) -> float:
        return float(self.given * 0.5 ** ((now_s - self.given_at_s) / HALF_LIFE_S))

    def give(self, n_tokens: int, now_s: float) -> None:
        self.given = self.given_lately(now_s) + n_tokens
        self.given_at_s = now_s


@dataclass(slots=True)
class Place:
    """One request's place on a replica, with the tokens that it counts there until ``release``."""

    endpoint: ReplicaEndpoint
    n_tokens: int
    _replica: _Replica
    _trial: Trial
    _read_before: float
    _clock: Callable[[], float]
    _has_succeeded: bool = False
    _is_released: bool = False

    def resize(self, *, n_prompt_tokens: int, n_new_tokens: int) -> None:
        """Count what is now known of the request, less what the replica need not read again."""
        if not self._is_released:
            demand = Demand(n_prompt_tokens=n_prompt_tokens, n_new_tokens=n_new_tokens)
            n_tokens = demand.n_to_do(read_before=self._read_before)
            self._replica.n_outstanding += n_tokens - self.n_tokens
            self.n_tokens = n_tokens

    def succeeded(self) -> None:
        """Say that the replica does its work: as soon as it shows. It counts once."""
        if not self._has_succeeded:
            self._has_succeeded = True
            self._replica.breaker.succeeded(self._trial)

    def failed(self, *, is_gone: bool = False) -> None:
        """Say that it failed, and not because of the request. is_gone: nobody is there at all."""
        self._replica.breaker.failed(self._trial, now_s=self._clock(), is_gone=is_gone)

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._replica.n_places -= 1
            self._replica.n_outstanding -= self.n_tokens
            self._replica.breaker.leave(self._trial)


class Balancer:
    """For one process. It remembers replicas that are ready or have open requests, and a bounded
    number of pieces of prompts.

    random: ranks replicas between which nothing else decides, so that several processes do not all
    begin with the same; without it the first is chosen.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        index: PrefixIndex | None = None,
    ) -> None:
        self._clock = clock
        self._random = random
        self._index = PrefixIndex() if index is None else index
        self._replicas: dict[Holder, _Replica] = {}

    def choose(
        self,
        endpoints: Sequence[ReplicaEndpoint],
        *,
        demand: Demand = NO_DEMAND,
        excluded: Collection[str] = (),
    ) -> ReplicaEndpoint | None:
        """Return the replica for a request; None where every one is excluded.

        excluded: engines, by name, that are not to be asked. Where every other one's breaker is
        open, the one that was to be tried again first is chosen: it fails no request by itself.
        """
        now_s = self._clock()
        allowed = [each for each in endpoints if each.engine_name not in excluded]
        able = [each for each in allowed if self._of(each).breaker.admits(now_s)]
        if not able:
            return min(allowed, default=None, key=self._badness)
        return self._reader(able, demand) or min(able, key=lambda each: self._load(each, now_s))

    def hold(self, endpoint: ReplicaEndpoint, *, demand: Demand = NO_DEMAND) -> Place:
        """Take a place on a replica for a request."""
        replica, holder = self._of(endpoint), _holder(endpoint)
        n_matched = self._index.matches(demand.prefix).get(holder, 0)
        read_before = demand.prefix.share(n_matched)
        self._index.add(demand.prefix, holder)
        n_tokens = demand.n_to_do(read_before=read_before)
        replica.n_places += 1
        replica.n_outstanding += n_tokens
        replica.give(n_tokens, self._clock())
        return Place(
            endpoint=endpoint,
            n_tokens=n_tokens,
            _replica=replica,
            _trial=replica.breaker.begin(),
            _read_before=read_before,
            _clock=self._clock,
        )

    def retain(self, endpoints: Iterable[ReplicaEndpoint]) -> None:
        """Forget replicas that are not among these, once nothing runs there."""
        live = {_holder(each) for each in endpoints}
        self._replicas = {
            holder: replica
            for holder, replica in self._replicas.items()
            if holder in live or replica.n_places
        }

    def n_outstanding(self, endpoint: ReplicaEndpoint) -> int:
        """Return the tokens that this process waits for there."""
        found = self._replicas.get(_holder(endpoint))
        return found.n_outstanding if found is not None else 0

    def breaker_state(self, endpoint: ReplicaEndpoint) -> BreakerState:
        found = self._replicas.get(_holder(endpoint))
        return found.breaker.state(self._clock()) if found is not None else "closed"

    def _reader(self, able: list[ReplicaEndpoint], demand: Demand) -> ReplicaEndpoint | None:
        """Return who has read most of such a prompt; nobody whose load that does not outweigh."""
        prefix = demand.prefix
        matches = self._index.matches(prefix) if prefix.chain else {}
        if not matches:
            return None
        mean = sum(self._of(each).n_outstanding for each in able) / len(able)
        readers = []
        for each in able:
            n_outstanding, n_matched = self._of(each).n_outstanding, matches.get(_holder(each), 0)
            share = prefix.share(n_matched)
            room = (1 + OVER_MEAN) * mean + demand.n_to_do(read_before=share)
            room += READING_WORTH * share * demand.n_prompt_tokens
            if share >= LEAST_SHARE and n_outstanding <= room:
                readers.append((n_matched, -n_outstanding, each))
        return max(readers, key=lambda found: found[:2])[2] if readers else None

    def _load(self, endpoint: ReplicaEndpoint, now_s: float) -> tuple[int, float, float]:
        replica = self._of(endpoint)
        return replica.n_outstanding, replica.given_lately(now_s), replica.rank

    def _badness(self, endpoint: ReplicaEndpoint) -> tuple[float, int]:
        replica = self._of(endpoint)
        return replica.breaker.opened_until_s, replica.n_outstanding

    def _of(self, endpoint: ReplicaEndpoint) -> _Replica:
        holder = _holder(endpoint)
        found = self._replicas.get(holder)
        if found is None:
            rank = self._random.random() if self._random is not None else 0.0
            found = self._replicas[holder] = _Replica(rank=rank, given_at_s=self._clock())
        return found


def _holder(endpoint: ReplicaEndpoint) -> Holder:
    return endpoint.engine_name, endpoint.epoch
