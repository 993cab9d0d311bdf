"""Reads of routes: the snapshot that processes keep, and the table that chooses from it."""

from collections import defaultdict
from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

from django.db.models import Prefetch, QuerySet
from guardian.shortcuts import get_objects_for_user

from apps.deployments.selectors import replica_endpoints
from apps.deployments.types import REMOTE_VERSION_ID, ReplicaEndpoint
from apps.routing.balancer import Balancer, Demand, Place, counted_new_tokens
from apps.routing.defaults import defaults_problems, defaults_read, defaults_said
from apps.routing.leads import are_two_demanded, targets_merged, targets_of
from apps.routing.models import Route, RouteTarget, RouteUserObjectPermission
from apps.routing.prefixes import MAX_PREFIX_CHARS, prompt_prefix
from apps.routing.response_cache import Generation, ResponseCache
from apps.routing.splits import route_splits
from apps.routing.table import Lease, RoutingTable
from apps.routing.types import Audience, Destination, PublicModel, RoutingSnapshot

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.rbac.models import User

__all__ = [
    "MAX_PREFIX_CHARS",
    "Balancer",
    "Demand",
    "Generation",
    "Lease",
    "Place",
    "ResponseCache",
    "RoutingTable",
    "counted_new_tokens",
    "defaults_problems",
    "defaults_read",
    "defaults_said",
    "prompt_prefix",
    "snapshot",
]
__all__ += ["are_two_demanded", "route_splits", "targets_merged", "targets_of"]


def snapshot() -> RoutingSnapshot:
    """Return what this moment's routes and ready replicas are, in four queries; in two more where
    routes are restricted."""
    targets = RouteTarget.objects.select_related("deployment__model_version").defer(
        "deployment__model_version__manifest"
    )
    rows = list(
        Route.objects.filter(is_active=True).prefetch_related(
            Prefetch("targets", queryset=targets), "aliases"
        )
    )
    audiences = _audiences([route.pk for route in rows if route.is_restricted])
    routes = {route.name: _model(route, audiences.get(route.pk)) for route in rows}
    endpoints: defaultdict[int, list[ReplicaEndpoint]] = defaultdict(list)
    for endpoint in replica_endpoints():
        endpoints[endpoint.deployment_id].append(endpoint)
    return RoutingSnapshot(
        routes=MappingProxyType(routes),
        aliases=MappingProxyType(
            {alias: model.name for model in routes.values() for alias in model.aliases}
        ),
        endpoints=MappingProxyType({key: tuple(value) for key, value in endpoints.items()}),
    )


def _model(route: Route, audience: Audience | None) -> PublicModel:
    """Return what a route means. A deployment whose model has come to do something else since the
    route was made gets nothing."""
    targets = list(route.targets.all())
    heaviest = max(targets, key=lambda target: target.weight, default=None)
    task = heaviest.deployment.task if heaviest is not None else "generate"
    fit = [target for target in targets if target.deployment.task == task]
    chain = [target for target in fit if target.fallback_order is not None]
    return PublicModel(
        name=route.name,
        aliases=tuple(alias.name for alias in route.aliases.all()),
        destinations=_destinations(target for target in fit if target.weight),
        fallbacks=_destinations(sorted(chain, key=lambda target: target.fallback_order or 0)),
        created_at=route.created_at,
        task=task,
        audience=audience,
        caches_responses=route.caches_responses,
        defaults=MappingProxyType(route.defaults),
    )


def _destinations(targets: Iterable[RouteTarget]) -> tuple[Destination, ...]:
    return tuple(
        destination_of(target.deployment, weight=target.weight, arm=target.arm)
        for target in targets
    )


def destination_of(deployment: "Deployment", *, weight: int, arm: str = "") -> Destination:
    """Return what a deployment is to whom requests are sent; it came with its model version."""
    return Destination(
        deployment_id=deployment.pk,
        deployment_name=deployment.name,
        model_version_id=deployment.model_version_id or REMOTE_VERSION_ID,
        context_length=deployment.context_length,
        weight=weight,
        arm=arm,
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
    """Return the active public names that lead to each deployment, in one query."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    rows = RouteTarget.objects.filter(route__is_active=True).order_by("route__name")
    for deployment_id, name in rows.values_list("deployment_id", "route__name"):
        names[deployment_id].append(name)
    return names


def route_id_of(name: str) -> int | None:
    """Return the id of the route that has a name now."""
    return Route.objects.filter(name=name).values_list("pk", flat=True).first()


def route_named(name: str) -> Route | None:
    return Route.objects.filter(name=name).first()


def routes_all() -> list[Route]:
    """Return every route with its targets and further names, in three queries."""
    targets = RouteTarget.objects.select_related("deployment")
    return list(Route.objects.prefetch_related(Prefetch("targets", queryset=targets), "aliases"))


def routes_described() -> "QuerySet[Route]":
    """Return the routes by name with all that is said of them, in four queries."""
    targets = RouteTarget.objects.select_related("deployment")
    rows = Route.objects.prefetch_related(
        Prefetch("targets", queryset=targets), "aliases", "tenants"
    )
    return rows.order_by("name")


def routes_visible_to(user: "User") -> frozenset[int] | None:
    """Return the routes that were given to somebody; None means that they see all of them."""
    if user.access.may("routing.view_route"):
        return None
    given = get_objects_for_user(
        user,
        ["routing.view_route", "routing.change_route"],
        klass=Route,
        any_perm=True,
        accept_global_perms=False,
        with_superuser=False,
    )
    return frozenset(given.values_list("pk", flat=True))
