"""The routing table of one process: which engine a public name leads to right now. In memory and
without I/O, so that choosing costs nothing and is tested without a database."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from apps.deployments.types import ReplicaEndpoint
from apps.rbac.types import Principal
from apps.routing.balancer import NO_DEMAND, Balancer, Demand, Place
from apps.routing.exceptions import ModelNotFound, NoReplicaReady
from apps.routing.types import Destination, PublicModel, RoutingSnapshot


@dataclass(frozen=True, slots=True)
class Lease:
    """One request's place on a replica, held until ``release``. tried: the engines that this
    request was at before, and is not sent to again. via: where something else than its route had it
    go, such as an experiment; empty where that came to nothing; None where only its route says."""

    model: PublicModel
    destination: Destination
    place: Place
    demand: Demand
    tried: frozenset[str]
    via: tuple[Destination, ...] | None = None

    @property
    def endpoint(self) -> ReplicaEndpoint:
        return self.place.endpoint

    @property
    def is_fallback(self) -> bool:
        """It is not where it was meant to be."""
        if self.via is not None:
            return not self.is_via
        return self.destination in self.model.fallbacks

    @property
    def is_via(self) -> bool:
        """It is where something else than its route had it go."""
        return self.destination in (self.via or ())

    @property
    def attempt(self) -> int:
        """1 for the first place that a request had."""
        return len(self.tried) + 1

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        self.place.release()


class RoutingTable:
    """Draws a deployment by its weight, and has a balancer choose among its replicas."""

    def __init__(self, *, balancer: Balancer | None = None, random: Random | None = None) -> None:
        self._snapshot = RoutingSnapshot()
        self.balancer = Balancer() if balancer is None else balancer
        self._random = random or Random()  # noqa: S311 - a share of traffic is no secret

    @property
    def snapshot(self) -> RoutingSnapshot:
        return self._snapshot

    def replace(self, snapshot: RoutingSnapshot) -> None:
        """Use a newer snapshot; leases that are held stay counted."""
        self._snapshot = snapshot
        self.balancer.retain(each for group in snapshot.endpoints.values() for each in group)

    def models(self, *, principal: Principal) -> list[PublicModel]:
        """Return the active routes that are for a caller, by name."""
        found = (each for each in self._snapshot.routes.values() if each.is_for(principal))
        return sorted(found, key=lambda model: model.name)

    def model(self, name: str, *, principal: Principal) -> PublicModel:
        """Return the active route of that name, its own or a further one; raises ModelNotFound
        where there is none for this caller."""
        model = self._snapshot.named(name)
        if model is None or not model.is_for(principal):
            raise ModelNotFound(name)
        return model

    def lease(
        self,
        name: str,
        *,
        principal: Principal,
        demand: Demand = NO_DEMAND,
        via: tuple[Destination, ...] | None = None,
    ) -> Lease:
        """Take a place on a replica that ``name`` leads to. A deployment without one that is ready
        gets nothing: its share goes to the others.

        via: where the request is to go in their place, by weights; they follow where nothing there
        takes requests.

        Raises:
            ModelNotFound: no active route has that name, or none for this caller.
            NoReplicaReady: it has one, but nothing there takes requests, its fallbacks included.
        """
        model = self.model(name, principal=principal)
        lease = self._lease(model, demand=demand, first=None, tried=frozenset(), via=via)
        if lease is None:
            raise NoReplicaReady(name)
        return lease

    def lease_elsewhere(self, lease: Lease) -> Lease | None:
        """Take a place for the same request on a replica where it was not yet: of the same
        deployment, then of another by weight, then of a fallback; None where there is none. What
        fails where something else than its route had it go, goes where its route leads."""
        return self._again(lease, tried=lease.tried | {lease.endpoint.engine_name})

    def lease_own(self, lease: Lease) -> Lease | None:
        """Take a place for the same request where its route leads, whatever else had a say; None
        where there is none."""
        return self._again(lease, tried=lease.tried)

    def _again(self, lease: Lease, *, tried: frozenset[str]) -> Lease | None:
        model = self._snapshot.routes.get(lease.model.name, lease.model)
        return self._lease(
            model,
            demand=lease.demand,
            first=None if lease.is_via else lease.destination,
            tried=tried,
            via=None if lease.via is None else (),
        )

    def _lease(
        self,
        model: PublicModel,
        *,
        demand: Demand,
        first: Destination | None,
        tried: frozenset[str],
        via: tuple[Destination, ...] | None,
    ) -> Lease | None:
        for destination in order(model, first=first, random=self._random, via=via or ()):
            endpoints = self._snapshot.endpoints.get(destination.deployment_id, ())
            endpoint = self.balancer.choose(endpoints, demand=demand, excluded=tried)
            if endpoint is not None:
                place = self.balancer.hold(endpoint, demand=demand)
                return Lease(model, destination, place, demand, tried, via)
        return None


def order(
    model: PublicModel,
    *,
    first: Destination | None,
    random: Random,
    via: tuple[Destination, ...] = (),
) -> Iterator[Destination]:
    """Yield where a request is to go, the best first: those of ``via``; ``first`` if the model
    still leads there; then those with a weight, each drawn by it among those that are left, then
    the fallbacks.

    Whoever skips one that cannot answer thereby gives its share to the others, by their weights.
    """
    yield from _drawn(list(via), random)
    known = {each.deployment_id for each in model.everywhere}
    if first is not None and first.deployment_id in known:
        yield first
    yield from _drawn([each for each in model.destinations if each != first], random)
    yield from (each for each in model.fallbacks if each != first)


def _drawn(left: list[Destination], random: Random) -> Iterator[Destination]:
    while left:
        (drawn,) = random.choices(left, weights=[each.weight for each in left])
        left.remove(drawn)
        yield drawn
