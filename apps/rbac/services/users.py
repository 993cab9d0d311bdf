"""Writes of people."""

from collections.abc import Collection

from django.contrib.auth.models import Permission
from django.contrib.auth.password_validation import validate_password
from django.db import transaction
from django.db.models import Q

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.services import change_stamp_bump, model_changes
from apps.rbac.models import User


@transaction.atomic
def user_create(
    *,
    username: str,
    password: str,
    actor: Actor,
    email: str = "",
    is_staff: bool = False,
    is_superuser: bool = False,
) -> User:
    user = User(username=username, email=email, is_staff=is_staff, is_superuser=is_superuser)
    validate_password(password, user)
    user.set_password(password)
    user.full_clean()
    user.save()
    event_record(
        action="user.created",
        actor=actor,
        obj=user,
        changes={"username": username, "is_staff": is_staff, "is_superuser": is_superuser},
    )
    return user


@transaction.atomic
def person_create(*, username: str, email: str, actor: Actor) -> User:
    """Make somebody who signs in by the provider alone, without a password. They may open the
    admin, and see there what their roles let them see.

    Raises:
        ValidationError: the name cannot be one.
        Conflict: somebody has it, in whatever case: names that look alike are mixed up.
    """
    user = User(username=username, email=email, is_staff=True)
    user.set_unusable_password()
    user.full_clean(exclude=["password"], validate_unique=False)
    if User.objects.filter(username__iexact=user.username).exists():
        raise Conflict("Somebody here has this name already.", code="name_taken")
    user.save()
    event_record(
        action="user.created",
        actor=actor,
        obj=user,
        changes={"username": user.username, "is_staff": True, "is_superuser": False},
    )
    return user


@transaction.atomic
def user_update(*, user: User, actor: Actor) -> User:
    """Save the values that ``user`` carries, all but the password.

    Raises:
        Conflict: it would leave nobody who can administer the platform.
    """
    locked = _superusers_and_lock(user.pk)
    stored = locked.pop(user.pk)
    user.password = stored.password
    changes = model_changes(obj=user, stored=stored)
    if not changes:
        return user
    was_able, is_able = (row.is_active and row.is_superuser for row in (stored, user))
    if was_able and not is_able and not locked:
        raise Conflict("This is the last active superuser; make another one first.")
    user.full_clean()
    user.save()
    event_record(action="user.updated", actor=actor, obj=user, changes=changes)
    change_stamp_bump("access")
    return user


def _superusers_and_lock(user_id: int) -> dict[int, User]:
    """Lock the user and the active superusers, in the order of their keys, so that two of them
    cannot be switched off at the same time."""
    rows = User.objects.select_for_update().filter(
        Q(pk=user_id) | Q(is_active=True, is_superuser=True)
    )
    return {row.pk: row for row in rows.order_by("pk")}


@transaction.atomic
def user_permissions_set(*, user: User, permissions: Collection[Permission], actor: Actor) -> None:
    before = set(user.user_permissions.values_list("codename", flat=True))
    after = {permission.codename for permission in permissions}
    if before == after:
        return
    user.user_permissions.set(permissions)
    event_record(
        action="user.permissions_changed",
        actor=actor,
        obj=user,
        changes={"added": sorted(after - before), "removed": sorted(before - after)},
    )
    change_stamp_bump("access")


@transaction.atomic
def user_password_set(*, user: User, password: str, actor: Actor) -> User:
    """Set a new password, which ends the person's sessions; the audit event says that, and never
    what."""
    validate_password(password, user)
    user.set_password(password)
    user.save(update_fields=["password"])
    event_record(action="user.password_changed", actor=actor, obj=user)
    change_stamp_bump("access")
    return user
