"""The routing table of one process: which engine a public name leads to right now. In memory and
without I/O, so that choosing costs nothing and is tested without a database."""

from collections import Counter
from dataclasses import dataclass

from apps.deployments.types import ReplicaEndpoint
from apps.rbac.types import Principal
from apps.routing.exceptions import ModelNotFound, NoReplicaReady
from apps.routing.types import RouteTarget, RoutingSnapshot


@dataclass(slots=True)
class Lease:
    """One request's place on a replica, held until ``release``."""

    target: RouteTarget
    endpoint: ReplicaEndpoint
    _outstanding: Counter[str]
    _released: bool = False

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if not self._released:
            self._released = True
            name = self.endpoint.engine_name
            self._outstanding[name] -= 1
            if not self._outstanding[name]:
                del self._outstanding[name]


class RoutingTable:
    """Chooses the replica with the fewest outstanding requests of this process."""

    def __init__(self) -> None:
        self._snapshot = RoutingSnapshot()
        self._outstanding: Counter[str] = Counter()

    @property
    def snapshot(self) -> RoutingSnapshot:
        return self._snapshot

    def replace(self, snapshot: RoutingSnapshot) -> None:
        """Use a newer snapshot; leases that are held stay counted."""
        self._snapshot = snapshot

    def targets(self, *, principal: Principal) -> list[RouteTarget]:
        """Return the active routes that are for a caller, by name."""
        found = (each for each in self._snapshot.routes.values() if each.is_for(principal))
        return sorted(found, key=lambda target: target.name)

    def target(self, name: str, *, principal: Principal) -> RouteTarget:
        """Return the active route of that name; raises ModelNotFound where there is none for this
        caller."""
        target = self._snapshot.routes.get(name)
        if target is None or not target.is_for(principal):
            raise ModelNotFound(name)
        return target

    def lease(self, name: str, *, principal: Principal) -> Lease:
        """Take a place on the least loaded replica that ``name`` leads to.

        Raises:
            ModelNotFound: no active route has that name, or none for this caller.
            NoReplicaReady: it has one, but nothing there takes requests.
        """
        target = self.target(name, principal=principal)
        endpoints = self._snapshot.endpoints.get(target.deployment_id, ())
        if not endpoints:
            raise NoReplicaReady(name)
        endpoint = min(endpoints, key=lambda each: self._outstanding[each.engine_name])
        self._outstanding[endpoint.engine_name] += 1
        return Lease(target=target, endpoint=endpoint, _outstanding=self._outstanding)
