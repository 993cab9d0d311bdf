"""Reads of routes: the snapshot that processes keep, and the table that chooses from it."""

from collections import defaultdict
from types import MappingProxyType

from apps.deployments.selectors import replica_endpoints
from apps.deployments.types import ReplicaEndpoint
from apps.routing.models import Route
from apps.routing.table import Lease, RoutingTable
from apps.routing.types import RouteTarget, RoutingSnapshot

__all__ = ["Lease", "RoutingTable", "snapshot"]


def snapshot() -> RoutingSnapshot:
    """Return what this moment's routes and ready replicas are, in two queries."""
    routes = {
        route.name: RouteTarget(
            name=route.name,
            deployment_id=route.deployment_id,
            deployment_name=route.deployment.name,
            model_version_id=route.deployment.model_version_id,
            created_at=route.created_at,
            task=route.deployment.model_version.task,
        )
        for route in Route.objects.filter(is_active=True)
        .select_related("deployment__model_version")
        .defer("deployment__model_version__manifest")
    }
    endpoints: defaultdict[int, list[ReplicaEndpoint]] = defaultdict(list)
    for endpoint in replica_endpoints():
        endpoints[endpoint.deployment_id].append(endpoint)
    return RoutingSnapshot(
        routes=MappingProxyType(routes),
        endpoints=MappingProxyType({key: tuple(value) for key, value in endpoints.items()}),
    )


def route_names_by_deployment() -> dict[int, list[str]]:
    """Return the active public names of each deployment, in one query."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    rows = Route.objects.filter(is_active=True).order_by("name")
    for deployment_id, name in rows.values_list("deployment_id", "name"):
        names[deployment_id].append(name)
    return names
