"""Whether somebody may do no more than somebody else, also with single objects. For what is handed
out as somebody's whole power, where one tenant's part of it is not all."""

from collections.abc import Iterator
from typing import Any

from guardian.models import UserObjectPermissionBase

from apps.rbac.models import User
from apps.rbac.permissions import access_of


def may_no_more(user: User, *, than: User) -> bool:
    """Return whether everything that ``user`` may do, ``than`` may do too."""
    held, theirs = than.access, access_of(user)
    if held.is_superuser or theirs.is_superuser:
        return held.is_superuser
    return (
        held.covers(theirs.platform, tenant_id=None)
        and all(held.covers(names, tenant_id=key) for key, names in theirs.tenants.items())
        and all(than.has_perm(name, obj) for name, obj in _given(user))
    )


def object_permission_tables() -> list[Any]:
    """Return guardian's table of each kind of object, in an order that does not change."""
    found = [each for each in _subclasses(UserObjectPermissionBase) if not each._meta.abstract]
    return sorted(found, key=lambda each: str(each._meta.label))


def _given(user: User) -> Iterator[tuple[str, Any]]:
    for table in object_permission_tables():
        rows = table._default_manager.filter(user=user)
        for row in rows.select_related("permission__content_type", "content_object"):
            label = row.permission.content_type.app_label
            yield f"{label}.{row.permission.codename}", row.content_object


def _subclasses(cls: Any) -> Iterator[Any]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)
