"""Who comes in: the checks of tokens and users. A read that fails is never a refusal."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import Permission
from django.db import DatabaseError, InterfaceError
from django.db.models import Q
from django.utils import timezone

from apps.core.exceptions import AuthenticationFailed, PermissionDenied, Unavailable
from apps.core.limits import Limits
from apps.rbac.models import ApiToken, User
from apps.rbac.types import SECRET_MARK, Identity, Principal
from apps.tenants.selectors import tenant_limits, tenant_of_user

TOUCH_EVERY = timedelta(minutes=5)
_SECRET_MAX_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrant:
    """What a live token admits, until when, and whether its last use is worth noting anew."""

    principal: Principal
    expires_at: datetime | None
    is_touch_due: bool


def secret_digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def grant_of_secret(secret: str) -> TokenGrant:
    """Return what the secret admits, in one query.

    Raises:
        AuthenticationFailed: unknown, revoked or expired, or its tenant is switched off.
        Unavailable: the database cannot be asked.
    """
    if not secret.startswith(SECRET_MARK) or len(secret) > _SECRET_MAX_CHARS:
        raise AuthenticationFailed
    try:
        token = (
            ApiToken.objects.select_related("tenant__plan")
            .filter(digest=secret_digest(secret))
            .first()
        )
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The key cannot be checked at the moment.") from error
    now = timezone.now()
    if token is None:
        raise AuthenticationFailed
    principal = _principal_of_live(token, now=now)
    return TokenGrant(
        principal=principal,
        expires_at=token.expires_at,
        is_touch_due=token.last_used_at is None or now - token.last_used_at > TOUCH_EVERY,
    )


def _principal_of_live(token: ApiToken, *, now: datetime) -> Principal:
    if token.revoked_at is not None:
        raise AuthenticationFailed("This API key was revoked.")
    if token.expires_at is not None and token.expires_at <= now:
        raise AuthenticationFailed("This API key has expired.")
    if not token.tenant.is_active:
        raise AuthenticationFailed("The tenant of this API key is not active.")
    return Principal(
        tenant_id=token.tenant_id,
        tenant_slug=token.tenant.slug,
        cache_salt=token.tenant.cache_salt,
        label=str(token),
        limits=tenant_limits(token.tenant),
        key_limits=Limits.of(token),
        weight=token.tenant.plan.weight,
        api_token_id=token.pk,
    )


def principal_of_token(token_id: int) -> Principal:
    """Return who a token belongs to, for work that goes on after the request that asked for it.

    Raises:
        AuthenticationFailed: gone, revoked or expired, or its tenant is switched off.
    """
    token = ApiToken.objects.select_related("tenant__plan").filter(pk=token_id).first()
    if token is None:
        raise AuthenticationFailed
    return _principal_of_live(token, now=timezone.now())


def principal_of_secret(secret: str) -> Principal:
    """As ``grant_of_secret``, without the times."""
    return grant_of_secret(secret).principal


def principal_of_user(user: AbstractBaseUser) -> Principal:
    """Return the principal of a signed-in person, in the tenant that they work in.

    Raises:
        PermissionDenied: switched off, or a member of no active tenant.
        Unavailable: the database cannot be asked.
    """
    if not user.is_active:
        raise PermissionDenied("This user is not active.")
    try:
        tenant = tenant_of_user(user)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The user cannot be checked at the moment.") from error
    if tenant is None:
        raise PermissionDenied("You are a member of no active tenant.")
    return Principal(
        tenant_id=tenant.pk,
        tenant_slug=tenant.slug,
        cache_salt=tenant.cache_salt,
        label=user.get_username(),
        limits=tenant_limits(tenant),
        weight=tenant.plan.weight,
        user_id=user.pk,
    )


def identities_in_force(identities: Collection[Identity]) -> set[Identity]:
    """Return those that still have access, in two queries. One whose token expired meanwhile still
    counts: what was begun in time may end; what was revoked may not."""
    tokens = set(
        ApiToken.objects.filter(
            pk__in={each.api_token_id for each in identities if each.api_token_id is not None},
            revoked_at=None,
            tenant__is_active=True,
        ).values_list("pk", "tenant_id")
    )
    members = set(
        User.objects.filter(
            pk__in={each.user_id for each in identities if each.user_id is not None},
            is_active=True,
            memberships__tenant__is_active=True,
        ).values_list("pk", "memberships__tenant_id")
    )
    return {
        each
        for each in identities
        if (each.api_token_id is None or (each.api_token_id, each.tenant_id) in tokens)
        and (each.user_id is None or (each.user_id, each.tenant_id) in members)
    }


def permission_names(user: User) -> set[str]:
    """Return what a user was given, by themselves or by a group, as ``app.codename``; also while
    they are switched off."""
    given = Permission.objects.filter(Q(user=user) | Q(group__user=user))
    pairs = given.values_list("content_type__app_label", "codename")
    return {f"{label}.{codename}" for label, codename in pairs}
