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
    request was at before, and is not sent to again."""

    model: PublicModel
    destination: Destination
    place: Place
    demand: Demand
    tried: frozenset[str]

    @property
    def endpoint(self) -> ReplicaEndpoint:
        return self.place.endpoint

    @property
    def is_fallback(self) -> bool:
        return self.destination in self.model.fallbacks

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

    def lease(self, name: str, *, principal: Principal, demand: Demand = NO_DEMAND) -> Lease:
        """Take a place on a replica that ``name`` leads to. A deployment without one that is ready
        gets nothing: its share goes to the others.

        Raises:
            ModelNotFound: no active route has that name, or none for this caller.
            NoReplicaReady: it has one, but nothing there takes requests, its fallbacks included.
        """
        model = self.model(name, principal=principal)
        lease = self._lease(model, demand=demand, first=None, tried=frozenset())
        if lease is None:
            raise NoReplicaReady(name)
        return lease

    def lease_elsewhere(self, lease: Lease) -> Lease | None:
        """Take a place for the same request on a replica where it was not yet: of the same
        deployment, then of another by weight, then of a fallback; None where there is none."""
        model = self._snapshot.routes.get(lease.model.name, lease.model)
        tried = lease.tried | {lease.endpoint.engine_name}
        return self._lease(model, demand=lease.demand, first=lease.destination, tried=tried)

    def _lease(
        self,
        model: PublicModel,
        *,
        demand: Demand,
        first: Destination | None,
        tried: frozenset[str],
    ) -> Lease | None:
        for destination in order(model, first=first, random=self._random):
            endpoints = self._snapshot.endpoints.get(destination.deployment_id, ())
            endpoint = self.balancer.choose(endpoints, demand=demand, excluded=tried)
            if endpoint is not None:
                place = self.balancer.hold(endpoint, demand=demand)
                return Lease(model, destination, place, demand, tried)
        return None


def order(
    model: PublicModel, *, first: Destination | None, random: Random
) -> Iterator[Destination]:
    """Yield where a request is to go, the best first: ``first`` if the model still leads there,
    then those with a weight, each drawn by it among those that are left, then the fallbacks.

    Whoever skips one that cannot answer thereby gives its share to the others, by their weights.
    """
    known = {each.deployment_id for each in model.everywhere}
    if first is not None and first.deployment_id in known:
        yield first
    left = [each for each in model.destinations if first is None or each != first]
    while left:
        (drawn,) = random.choices(left, weights=[each.weight for each in left])
        left.remove(drawn)
        yield drawn
    yield from (each for each in model.fallbacks if each != first)
