"""Who manages: the owner of the token, with what they may at this moment. Nothing here is kept
between requests, and every question goes to the one permission layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import models

from apps.audit.types import Actor
from apps.core.access import Access
from apps.core.exceptions import PermissionDenied
from apps.rbac.selectors import person_behind, rows_open

if TYPE_CHECKING:
    from apps.core.addresses import Address
    from apps.rbac.models import User
    from apps.rbac.types import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """actor: for the audit trail, where the token acts and its owner is named."""

    user: "User"
    actor: Actor

    @property
    def access(self) -> Access:
        return self.user.access

    def require(self, *permissions: str, param: str | None = None) -> None:
        """Raise PermissionDenied unless they have one of these, everywhere."""
        if not any(self.access.may(each) for each in permissions):
            raise PermissionDenied(f"For this you need {permissions[0]}.", param=param)

    def require_of(self, obj: models.Model, permission: str) -> None:
        """Raise PermissionDenied unless they have it, everywhere or of this one object."""
        if not self.user.has_perm(permission, obj):
            raise PermissionDenied(f"For this you need {permission}.")


def caller_of(principal: "Principal", *, address: "Address | None") -> Caller:
    """Return who asks, and let the work touch the rows that the admin would let them see. Raises
    PermissionDenied where the token is nobody's."""
    user: Any = person_behind(principal)
    rows_open(user.access)
    actor = Actor(
        kind="token",
        id=principal.api_token_id,
        label=f"{user.get_username()}, by {principal.label}",
        ip_address=None if address is None else str(address),
    )
    return Caller(user=user, actor=actor)
