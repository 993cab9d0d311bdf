"""Writes of permissions on single objects, as guardian keeps them beside each kind of object."""

from collections.abc import Iterable
from typing import Protocol

from django.contrib.auth.models import Permission
from django.db import models, transaction
from guardian.shortcuts import assign_perm, remove_perm

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import PermissionDenied
from apps.core.services import change_stamp_bump
from apps.rbac.models import User


class ObjectGrant(Protocol):
    """A row of guardian's."""

    @property
    def user(self) -> User: ...

    @property
    def permission(self) -> Permission: ...


@transaction.atomic
def object_permissions_change(
    *,
    obj: models.Model,
    added: Iterable[ObjectGrant] = (),
    removed: Iterable[ObjectGrant] = (),
    by: User | None,
    actor: Actor,
) -> None:
    """Give people permissions on one object, and take them away.

    Processes that keep such objects in memory hear of it by the stamp of their kind, ``routes`` or
    ``deployments``.

    Raises:
        PermissionDenied: ``by`` may give no roles, or lacks what would be given or taken.
    """
    added, removed = list(added), list(removed)
    for grant in (*added, *removed):
        _check(by, grant.permission, obj)
    for grant in added:
        assign_perm(grant.permission.codename, grant.user, obj)
        _record("granted", grant, obj, actor=actor)
    for grant in removed:
        remove_perm(grant.permission.codename, grant.user, obj)
        _record("withdrawn", grant, obj, actor=actor)
    if added or removed:
        change_stamp_bump("access")
        change_stamp_bump(f"{obj._meta.model_name}s")


def _check(by: User | None, permission: Permission, obj: models.Model) -> None:
    if by is None:
        return
    name = f"{permission.content_type.app_label}.{permission.codename}"
    if not by.access.may("rbac.add_rolegrant") or not by.has_perm(name, obj):
        raise PermissionDenied(f"You may not give or take {name} of {obj}.")


def _record(verb: str, grant: ObjectGrant, obj: models.Model, *, actor: Actor) -> None:
    event_record(
        action=f"object_permission.{verb}",
        actor=actor,
        obj=obj,
        changes={"user": grant.user.get_username(), "permission": grant.permission.codename},
    )
