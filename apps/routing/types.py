"""What the room hands to others."""

import hashlib
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
# Of requests' fields, those that a route may have a default for.
DEFAULT_NAMES: Final = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "max_tokens",
)  # fmt: skip
# What somebody has to hold to be told how a route's requests are shared, whosever they are.
SEE_SPLIT: Final = ("routing.view_route", "metering.view_usagerecord")
RESPONSES_STAMP: Final = "responses"  # moves with each purge, beside the stamps of what was purged


# What leads from the stamp of a purge to the tag under which engines keep the same text.
_OF: Final = f"{RESPONSES_STAMP}:"


def tenant_stamp(tenant_id: int) -> str:
    return f"{_OF}tenant:{tenant_id}"


def person_stamp(tenant_id: int, person: str) -> str:
    """person: as ``person_digest`` has it."""
    return f"{_OF}person:{tenant_id}:{person}"


def version_stamp(model_version_id: int) -> str:
    return f"{_OF}version:{model_version_id}"


def person_digest(identifier: str | None, *, cache_salt: str) -> str:
    """Return what stands for one whom a tenant serves where answers are kept: 32 hexadecimal
    digits, which say nothing without the tenant's salt; nothing of nobody."""
    if not identifier:
        return ""
    return hashlib.sha256(f"{cache_salt}:{identifier}".encode()).hexdigest()[:32]


def cache_tags(tenant_id: int, person: str) -> tuple[str, ...]:
    """Return the names under which an engine keeps what it computed for a request."""
    stamps = [tenant_stamp(tenant_id), *([person_stamp(tenant_id, person)] if person else [])]
    return tuple(stamp.removeprefix(_OF) for stamp in stamps)


def purged_tag(stamp: str) -> str | None:
    """Return what engines are to forget where a stamp has moved; None where it is of no text."""
    kind, _, rest = stamp.removeprefix(_OF).partition(":")
    return f"{kind}:{rest}" if stamp.startswith(_OF) and kind != "version" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A deployment that a public name leads to. weight: 0 in the chain of fallbacks. arm: of the
    route's rollout, for the ledger."""

    deployment_id: int
    deployment_name: str
    model_version_id: int
    context_length: int
    weight: int = 0
    arm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicModel:
    """An active public name, and where it leads: its requests are drawn among ``destinations`` by
    their weights; ``fallbacks`` are asked, in their order, where none of those can answer.

    context_length: the least of them all, so that what fits, fits anywhere. defaults: what holds
    where a request says nothing.
    """

    name: str
    aliases: tuple[str, ...] = ()
    destinations: tuple[Destination, ...]
    fallbacks: tuple[Destination, ...] = ()
    created_at: datetime
    task: Task = "generate"
    audience: "Audience | None" = None
    caches_responses: bool = False
    defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def everywhere(self) -> tuple[Destination, ...]:
        return self.destinations + self.fallbacks

    @property
    def context_length(self) -> int:
        return min((each.context_length for each in self.everywhere), default=0)

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
    """Every active route, by its own name; whose the further names are; and the replicas that take
    requests, by deployment."""

    routes: Mapping[str, PublicModel] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    endpoints: Mapping[int, tuple[ReplicaEndpoint, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def named(self, name: str) -> PublicModel | None:
        """Return what a name means, its own or a further one."""
        return self.routes.get(name) or self.routes.get(self.aliases.get(name, ""))

    def is_ready(self, model: PublicModel) -> bool:
        """Return whether any replica that it leads to takes requests."""
        return any(self.endpoints.get(each.deployment_id) for each in model.everywhere)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLine:
    """A deployment of a route. key: by which pages mark its words. weight, n_requests, n_open,
    n_failed: its own; shares are in percent of all, None where there is nothing to share.
    is_fallback: it is of the chain."""

    key: str
    deployment_id: int
    name: str
    word: str
    tone: str
    weight: int
    is_fallback: bool
    wanted_percent: float | None
    got_percent: float | None
    n_requests: int = 0
    n_open: int = 0
    n_failed: int = 0

    @property
    def wanted(self) -> str:
        if self.is_fallback:
            return "fallback"
        return _percent(self.wanted_percent)

    @property
    def got(self) -> str:
        return _percent(self.got_percent)

    @property
    def wanted_width(self) -> str:
        return f"{self.wanted_percent or 0:.1f}"

    @property
    def got_width(self) -> str:
        return f"{self.got_percent or 0:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSplit:
    """since: from when on requests are counted."""

    route_id: int
    name: str
    since: datetime
    lines: tuple[SplitLine, ...]

    @property
    def n_requests(self) -> int:
        return sum(line.n_requests for line in self.lines)

    @property
    def n_weighted(self) -> int:
        return sum(line.weight > 0 for line in self.lines)

    @property
    def shape(self) -> str:
        """What changes when a page has to be made anew: where the route leads, and how."""
        return " ".join(f"{line.deployment_id}:{line.weight}" for line in self.lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """A deployment that a route shall lead to: with a weight, or with a place in the chain of
    fallbacks, the lowest first. arm: what the ledger shall say of its requests."""

    deployment: "Deployment"
    weight: int = 0
    fallback_order: int | None = None
    arm: str = ""

    @property
    def is_asked(self) -> bool:
        """It may get requests, at once or where others cannot answer."""
        return self.weight > 0 or self.fallback_order is not None

    def __str__(self) -> str:
        if self.fallback_order is not None:
            return f"{self.deployment} as fallback {self.fallback_order}"
        return f"{self.deployment}={self.weight}"


def all_to(deployment: "Deployment") -> tuple[TargetSpec, ...]:
    """Return the targets of a route with one deployment, which gets everything."""
    return (TargetSpec(deployment=deployment, weight=100),)


class RouteFields(TypedDict, total=False):
    """What a person may set on a route, by the names of its columns."""

    name: str
    is_active: bool
    description: str
    is_restricted: bool
    caches_responses: bool
    defaults: Mapping[str, float]
