"""Reads of routes: the snapshot that processes keep, and the table that chooses from it."""

from collections import defaultdict
from types import MappingProxyType

from apps.deployments.selectors import replica_endpoints
from apps.deployments.types import REMOTE_VERSION_ID, ReplicaEndpoint
from apps.routing.models import Route, RouteUserObjectPermission
from apps.routing.response_cache import Generation, ResponseCache
from apps.routing.table import Lease, RoutingTable
from apps.routing.types import Audience, RouteTarget, RoutingSnapshot

__all__ = ["Generation", "Lease", "ResponseCache", "RoutingTable", "snapshot"]


def snapshot() -> RoutingSnapshot:
    """Return what this moment's routes and ready replicas are, in two queries; in two more where
    routes are restricted."""
    rows = list(
        Route.objects.filter(is_active=True)
        .select_related("deployment__model_version")
        .defer("deployment__model_version__manifest")
    )
    audiences = _audiences([route.pk for route in rows if route.is_restricted])
    routes = {
        route.name: RouteTarget(
            name=route.name,
            deployment_id=route.deployment_id,
            deployment_name=route.deployment.name,
            model_version_id=route.deployment.model_version_id or REMOTE_VERSION_ID,
            created_at=route.created_at,
            task=route.deployment.task,
            audience=audiences.get(route.pk),
            caches_responses=route.caches_responses,
        )
        for route in rows
    }
    endpoints: defaultdict[int, list[ReplicaEndpoint]] = defaultdict(list)
    for endpoint in replica_endpoints():
        endpoints[endpoint.deployment_id].append(endpoint)
    return RoutingSnapshot(
        routes=MappingProxyType(routes),
        endpoints=MappingProxyType({key: tuple(value) for key, value in endpoints.items()}),
    )


def _audiences(route_ids: list[int]) -> dict[int, Audience]:
    if not route_ids:
        return {}
    tenants: defaultdict[int, set[int]] = defaultdict(set)
    people: defaultdict[int, set[int]] = defaultdict(set)
    shared = Route.tenants.through.objects.filter(route_id__in=route_ids)
    for route_id, tenant_id in shared.values_list("route_id", "tenant_id"):
        tenants[route_id].add(tenant_id)
    given = RouteUserObjectPermission.objects.filter(
        content_object__in=route_ids, permission__codename="use_route"
    )
    for route_id, user_id in given.values_list("content_object_id", "user_id"):
        people[route_id].add(user_id)
    return {
        route_id: Audience(
            tenant_ids=frozenset(tenants[route_id]), user_ids=frozenset(people[route_id])
        )
        for route_id in route_ids
    }


def route_names_by_deployment() -> dict[int, list[str]]:
    """Return the active public names of each deployment, in one query."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    rows = Route.objects.filter(is_active=True).order_by("name")
    for deployment_id, name in rows.values_list("deployment_id", "name"):
        names[deployment_id].append(name)
    return names


def route_id_of(name: str) -> int | None:
    """Return the id of the route that has a name now."""
    return Route.objects.filter(name=name).values_list("pk", flat=True).first()
