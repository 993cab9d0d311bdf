"""Writes of the access room: tokens and users. Both are switched off, never deleted, because the
ledger and the audit trail speak of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import Permission
from django.contrib.auth.password_validation import validate_password
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict, InvalidRequest
from apps.core.limits import LIMIT_NAMES
from apps.core.services import change_stamp_bump, model_changes
from apps.rbac.models import ApiToken, User
from apps.rbac.selectors import TOUCH_EVERY, secret_digest
from apps.rbac.types import SECRET_MARK, IssuedToken

if TYPE_CHECKING:
    from apps.tenants.models import Tenant

# Enough to tell tokens apart in a list (collisions are refused by the unique constraint and drawn
# again), too little to guess the remaining 220 bits.
_PREFIX_CHARS = 14


@transaction.atomic
def api_token_issue(
    *,
    tenant: Tenant,
    name: str,
    actor: Actor,
    created_by: User | None = None,
    expires_at: datetime | None = None,
    **limits: Any,
) -> IssuedToken:
    """Make a token. Its secret is in what is returned and nowhere else. limits: of its own, by the
    names of ``core.limits.LimitFields``."""
    if expires_at is not None and expires_at <= timezone.now():
        raise InvalidRequest("The time of expiry lies in the past.", param="expires_at")
    secret = _secret_draw()
    token = ApiToken(
        tenant=tenant,
        name=name,
        prefix=secret[:_PREFIX_CHARS],
        digest=secret_digest(secret),
        created_by=created_by,
        expires_at=expires_at,
        **limits,
    )
    token.full_clean()
    token.save()
    event_record(
        action="api_token.issued",
        actor=actor,
        obj=token,
        tenant_id=tenant.pk,
        changes={
            "name": name,
            "expires_at": expires_at.isoformat() if expires_at else None,
            **{key: value for key, value in limits.items() if value not in (None, "")},
        },
    )
    change_stamp_bump("access")
    return IssuedToken(token=token, secret=secret)


def _secret_draw() -> str:
    while True:
        secret = SECRET_MARK + secrets.token_urlsafe(32)
        if not ApiToken.objects.filter(prefix=secret[:_PREFIX_CHARS]).exists():
            return secret


@transaction.atomic
def api_token_update(*, token: ApiToken, actor: Actor) -> ApiToken:
    """Save the name, the time of expiry and the limits that ``token`` carries."""
    stored = ApiToken.objects.select_for_update().get(pk=token.pk)
    if stored.tenant_id != token.tenant_id:
        raise InvalidRequest("A token stays with its tenant.", param="tenant")
    changes = model_changes(obj=token, stored=stored)
    if not changes:
        return token
    token.full_clean()
    token.save(update_fields=["name", "expires_at", *LIMIT_NAMES, "updated_at"])
    event_record(
        action="api_token.updated",
        actor=actor,
        obj=token,
        tenant_id=token.tenant_id,
        changes=changes,
    )
    change_stamp_bump("access")
    return token


@transaction.atomic
def api_token_revoke(*, token: ApiToken, actor: Actor) -> ApiToken:
    """Refuse the token from now on, for ever. Revoking it twice changes nothing."""
    stored = ApiToken.objects.select_for_update().get(pk=token.pk)
    if stored.revoked_at is not None:
        return stored
    stored.revoked_at = timezone.now()
    stored.save(update_fields=["revoked_at", "updated_at"])
    event_record(action="api_token.revoked", actor=actor, obj=stored, tenant_id=stored.tenant_id)
    change_stamp_bump("access")
    return stored


def api_token_touch(token_id: int) -> None:
    """Note that the token is in use, at most once in ``TOUCH_EVERY``: a list needs no more."""
    now = timezone.now()
    ApiToken.objects.filter(
        Q(last_used_at=None) | Q(last_used_at__lt=now - TOUCH_EVERY), pk=token_id
    ).update(last_used_at=now)


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


@transaction.atomic
def user_password_set(*, user: User, password: str, actor: Actor) -> User:
    """Set a new password; the audit event says that, and never what."""
    validate_password(password, user)
    user.set_password(password)
    user.save(update_fields=["password"])
    event_record(action="user.password_changed", actor=actor, obj=user)
    return user
