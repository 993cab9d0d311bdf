"""What a person may do, as every room asks it; the access room says what that is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from django.http import HttpRequest

NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a person holds: everywhere, and in each tenant besides. Names are ``app.codename``."""

    platform: frozenset[str] = NOTHING
    tenants: Mapping[int, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    is_superuser: bool = False

    def may(self, permission: str, *, tenant_id: int | None = None) -> bool:
        """Return whether it allows something: in one tenant, or everywhere if none is named."""
        if self.is_superuser or permission in self.platform:
            return True
        return tenant_id is not None and permission in self.tenants.get(tenant_id, NOTHING)

    def may_somewhere(self, permission: str) -> bool:
        return self.may(permission) or any(permission in held for held in self.tenants.values())

    def tenants_where(self, permission: str) -> frozenset[int] | None:
        """Return the tenants in which it allows something; None means all of them."""
        if self.may(permission):
            return None
        return frozenset(key for key, held in self.tenants.items() if permission in held)

    def covers(self, permissions: frozenset[str], *, tenant_id: int | None) -> bool:
        """Return whether whoever has it holds all of these: nobody hands on what they lack."""
        return all(self.may(each, tenant_id=tenant_id) for each in permissions)


def access_in(request: HttpRequest) -> Access:
    """Return what the person at a page holds; nothing while nobody is signed in."""
    user: Any = request.user
    return user.access if user.is_authenticated else Access()
