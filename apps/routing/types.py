"""What the room hands to others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypedDict

from apps.deployments.types import ReplicaEndpoint
from apps.rbac.types import Principal
from apps.registry.types import Task

if TYPE_CHECKING:
    from apps.deployments.models import Deployment

ROUTES_STAMP: Final = "routes"
RESPONSES_STAMP: Final = "responses"  # moves with each purge, beside the stamps of what was purged


def tenant_stamp(tenant_id: int) -> str:
    return f"{RESPONSES_STAMP}:tenant:{tenant_id}"


def version_stamp(model_version_id: int) -> str:
    return f"{RESPONSES_STAMP}:version:{model_version_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """An active public name and the deployment that it leads to."""

    name: str
    deployment_id: int
    deployment_name: str
    model_version_id: int
    created_at: datetime
    task: Task = "generate"
    audience: "Audience | None" = None
    caches_responses: bool = False

    def is_for(self, principal: Principal) -> bool:
        """Return whether it is there for a caller; without an audience it is for everyone."""
        return (
            self.audience is None
            or principal.uses_every_route
            or principal.tenant_id in self.audience.tenant_ids
            or principal.subject_id in self.audience.user_ids
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """For whom a restricted route is."""

    tenant_ids: frozenset[int]
    user_ids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSnapshot:
    """Every active route, by name, and the replicas that take requests, by deployment."""

    routes: Mapping[str, RouteTarget] = field(default_factory=lambda: MappingProxyType({}))
    endpoints: Mapping[int, tuple[ReplicaEndpoint, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )


class RouteFields(TypedDict, total=False):
    """What a person may set on a route, by the names of its columns."""

    name: str
    deployment: "Deployment"
    is_active: bool
    description: str
    is_restricted: bool
    caches_responses: bool
