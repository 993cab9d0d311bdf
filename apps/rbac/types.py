"""Who a request comes from, as every door hands it to admission."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from apps.core.limits import UNLIMITED, Limits

if TYPE_CHECKING:
    from apps.rbac.models import ApiToken

SECRET_MARK = "sk-nano-"  # noqa: S105 - how a secret begins, not one


class Identity(NamedTuple):
    """What stays the same of a principal, however its token or tenant is renamed or limited."""

    tenant_id: int
    api_token_id: int | None
    user_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller inside one tenant: a program's token or a person in the admin.

    cache_salt: the tenant's, given to the engine to seed its prefix cache. weight: its plan's share
    of a busy engine. limits: of its plan and its own. key_limits: of the key alone.
    """

    tenant_id: int
    tenant_slug: str
    cache_salt: str
    label: str
    limits: Limits
    key_limits: Limits = UNLIMITED
    weight: float = 1.0
    api_token_id: int | None = None
    user_id: int | None = None

    @property
    def identity(self) -> "Identity":
        return Identity(self.tenant_id, self.api_token_id, self.user_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A new token with its secret, which exists nowhere else and is to be shown once."""

    token: "ApiToken"
    secret: str = field(repr=False)
