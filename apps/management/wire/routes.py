"""Routes on the wire."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.management.wire.common import END, ManagedPage, Name, seconds

if TYPE_CHECKING:
    from apps.routing.models import Route

Weight = Annotated[int, Meta(ge=0, le=1000)]
RouteName = Annotated[
    str, Meta(min_length=1, max_length=120, pattern=rf"^[A-Za-z0-9][A-Za-z0-9._:/-]*{END}")
]
Aliases = Annotated[tuple[RouteName, ...], Meta(max_length=100)]
Slugs = Annotated[tuple[Name, ...], Meta(max_length=1000)]
Defaults = Annotated[dict[str, int | float], Meta(max_length=20)]
Text = Annotated[str, Meta(max_length=300)]


class TargetBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Its share of the requests is its weight among the weights of all."""

    deployment: Name
    weight: Weight = 100


Targets = Annotated[tuple[TargetBody, ...], Meta(max_length=16)]
Fallbacks = Annotated[tuple[Name, ...], Meta(max_length=16)]


class RouteBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A whole route: what is left out is empty, or as for a new one. ``fallbacks``: deployments, in
    the order in which they are asked. ``tenants``: slugs of those that may use a restricted one."""

    targets: Targets
    fallbacks: Fallbacks = ()
    aliases: Aliases = ()
    defaults: Defaults = msgspec.field(default_factory=dict)
    description: Text = ""
    is_active: bool = True
    is_restricted: bool = False
    tenants: Slugs = ()
    caches_responses: bool = False


class RouteChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays: ``targets`` alone leaves the fallbacks, and the other way round."""

    name: RouteName | UnsetType = UNSET
    targets: Targets | UnsetType = UNSET
    fallbacks: Fallbacks | UnsetType = UNSET
    aliases: Aliases | UnsetType = UNSET
    defaults: Defaults | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET
    is_restricted: bool | UnsetType = UNSET
    tenants: Slugs | UnsetType = UNSET
    caches_responses: bool | UnsetType = UNSET


class TargetObject(msgspec.Struct, kw_only=True):
    deployment: str
    weight: int


class RouteObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "route"
    created_at: int
    updated_at: int
    targets: tuple[TargetObject, ...]
    fallbacks: tuple[str, ...]
    aliases: tuple[str, ...]
    defaults: dict[str, int | float]
    description: str
    is_active: bool
    is_restricted: bool
    tenants: tuple[str, ...]
    caches_responses: bool


class RoutePage(ManagedPage, kw_only=True):
    data: tuple[RouteObject, ...]


def route_object(row: "Route") -> RouteObject:
    """row: as ``routes_described`` has it; no query."""
    targets = list(row.targets.all())
    chain = [each for each in targets if each.fallback_order is not None]
    return RouteObject(
        id=row.name,
        created_at=seconds(row.created_at),
        updated_at=seconds(row.updated_at),
        targets=tuple(
            TargetObject(deployment=each.deployment.name, weight=each.weight)
            for each in targets
            if each.fallback_order is None
        ),
        fallbacks=tuple(
            each.deployment.name
            for each in sorted(chain, key=lambda each: each.fallback_order or 0)
        ),
        aliases=tuple(alias.name for alias in row.aliases.all()),
        defaults=row.defaults,
        description=row.description,
        is_active=row.is_active,
        is_restricted=row.is_restricted,
        tenants=tuple(sorted(tenant.slug for tenant in row.tenants.all())),
        caches_responses=row.caches_responses,
    )
