"""Who a request comes from, as every door hands it to admission."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, fields
from datetime import datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from apps.core.addresses import Network
from apps.core.limits import UNLIMITED, Limits
from apps.core.prices import FREE, Prices

if TYPE_CHECKING:
    from apps.rbac.models import ApiToken

USE_ROUTE: Final = "routing.use_route"
ADD_TOKEN: Final = "rbac.add_apitoken"  # noqa: S105 - a permission
# What a token may be used for, and the permissions that its owner must have for it.
SCOPES: Final[Mapping[str, frozenset[str]]] = {
    "inference": frozenset({USE_ROUTE}),
    "batches": frozenset({USE_ROUTE, "batches.add_batch"}),
    "manage": frozenset(),  # each of its operations asks what the owner may
}
# What a token is for where nobody says, and what only one with an owner can be for.
DEFAULT_SCOPES: Final = ("inference", "batches")
OWNED_SCOPES: Final = frozenset({"manage"})
SECRET_MARK: Final = "sk-nano-"  # noqa: S105 - how a secret begins, not one
JWT_ALGORITHM: Final = "EdDSA"


def scope_permissions(scopes: Iterable[str]) -> frozenset[str]:
    """Return what somebody must be allowed to do for these scopes, by names in ``SCOPES``."""
    return frozenset().union(*(SCOPES[scope] for scope in scopes))


def networks_of(text: str) -> tuple[Network, ...]:
    """Return the networks of a text, one a line; raises ValueError."""
    return tuple(ip_network(line) for line in text.split())


class Identity(NamedTuple):
    """What stays the same of a principal, however its token or tenant is renamed or limited.

    family_id: of the JWT that it came with; None where it came with the API token itself.
    session_key: of the session in which a person came.
    """

    tenant_id: int
    api_token_id: int | None
    user_id: int | None
    family_id: int | None = None
    session_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller inside one tenant: a program's token or a person in the admin.

    scopes: what it may be used for. subject_id: the person, or the owner of the token if it has
    one; routes that are not for everyone know them. uses_every_route: such routes included.
    networks: from where it may be used; empty is anywhere. family_id: of the JWT that it came with.
    session_key: of the session in which a person came.
    cache_salt: the tenant's, given to the engine to seed its prefix cache. weight: its plan's share
    of a busy engine. limits: of its plan and its own. key_limits: of the key alone. prices: its
    plan's. allows_judging: its answers may be kept until a judge has scored them.
    """

    tenant_id: int
    tenant_slug: str
    cache_salt: str
    label: str
    limits: Limits
    key_limits: Limits = UNLIMITED
    prices: Prices = FREE
    weight: float = 1.0
    api_token_id: int | None = None
    user_id: int | None = None
    subject_id: int | None = None
    scopes: frozenset[str] = frozenset()
    uses_every_route: bool = False
    networks: tuple[Network, ...] = ()
    family_id: int | None = None
    session_key: str | None = field(default=None, repr=False)
    allows_judging: bool = False

    @property
    def identity(self) -> "Identity":
        return Identity(
            self.tenant_id, self.api_token_id, self.user_id, self.family_id, self.session_key
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A new token with its secret, which exists nowhere else and is to be shown once."""

    token: "ApiToken"
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """What a program gets for an API token or a refresh token; shown once."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_expires_at: datetime
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessEntry:
    """One thing that somebody may do. where: ``everywhere``, ``tenant:slug`` or an object.
    is_effective: not while they, the tenant or the token are switched off."""

    kind: str
    subject: str
    permission: str
    where: str
    why: str
    is_effective: bool

    @classmethod
    def columns(cls) -> list[str]:
        return [each.name for each in fields(cls)]

    def row(self) -> tuple[str | bool, ...]:
        return astuple(self)
