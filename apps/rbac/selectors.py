"""Who comes in: the checks of tokens and users. A read that fails is never a refusal."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.utils import timezone

from apps.audit.types import Actor
from apps.core.access import Access
from apps.core.addresses import Address, is_within
from apps.core.exceptions import AuthenticationFailed, PermissionDenied, Unavailable
from apps.core.limits import Limits
from apps.core.prices import Prices
from apps.core.tenancy import every_tenant
from apps.rbac.models import ApiToken, GroupMapping, TokenFamily, User
from apps.rbac.permissions import held_by, holders_of
from apps.rbac.permissions import rows_open as rows_open
from apps.rbac.review import access_review as access_review
from apps.rbac.types import (
    OWNED_SCOPES,
    SCOPES,
    SECRET_MARK,
    USE_ROUTE,
    Identity,
    Principal,
    networks_of,
)
from apps.tenants.selectors import tenant_limits, tenant_of_user

TOUCH_EVERY = timedelta(minutes=5)
_SECRET_MAX_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrant:
    """What a live token admits, until when, and whether its last use is worth noting anew."""

    principal: Principal
    expires_at: datetime | None
    is_touch_due: bool


def person_of(request: HttpRequest) -> User:
    """Return who is signed in; the admin lets nobody else in."""
    assert isinstance(request.user, User)
    return request.user


def secret_digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@every_tenant("whose it is, is what a secret says")
def grant_of_secret(secret: str) -> TokenGrant:
    """Return what the secret admits: in one query, and three more where the token has an owner.

    Raises:
        AuthenticationFailed: unknown, revoked or expired, or its tenant is switched off.
        Unavailable: the database cannot be asked.
    """
    if not secret.startswith(SECRET_MARK) or len(secret) > _SECRET_MAX_CHARS:
        raise AuthenticationFailed
    try:
        token = (
            ApiToken.objects.select_related("tenant__plan", "owner")
            .filter(digest=secret_digest(secret))
            .first()
        )
        now = timezone.now()
        if token is None:
            raise AuthenticationFailed
        principal = principal_of_live(token, now=now)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The key cannot be checked at the moment.") from error
    return TokenGrant(
        principal=principal,
        expires_at=token.expires_at,
        is_touch_due=token.last_used_at is None or now - token.last_used_at > TOUCH_EVERY,
    )


def principal_of_live(token: ApiToken, *, now: datetime) -> Principal:
    """Return who a token belongs to, which was read with its tenant, plan and owner.

    Raises:
        AuthenticationFailed: revoked or expired, or its tenant or its owner is switched off.
    """
    if token.revoked_at is not None:
        raise AuthenticationFailed("This API key was revoked.")
    if token.expires_at is not None and token.expires_at <= now:
        raise AuthenticationFailed("This API key has expired.")
    if not token.tenant.is_active:
        raise AuthenticationFailed("The tenant of this API key is not active.")
    scopes, access = frozenset(token.scopes), None
    if token.owner is None:
        scopes -= OWNED_SCOPES
    else:
        access = _access_of_member(token.owner, tenant_id=token.tenant_id)
        scopes &= _scopes_of(access, tenant_id=token.tenant_id)
    return Principal(
        tenant_id=token.tenant_id,
        tenant_slug=token.tenant.slug,
        cache_salt=token.tenant.cache_salt,
        label=str(token),
        limits=tenant_limits(token.tenant),
        key_limits=Limits.of(token),
        prices=Prices.of(token.tenant.plan),
        weight=token.tenant.plan.weight,
        allows_judging=token.tenant.allows_judging,
        api_token_id=token.pk,
        subject_id=token.owner_id,
        scopes=scopes,
        uses_every_route=access is not None and access.may(USE_ROUTE),
        networks=networks_of(token.allowed_networks),
    )


def _access_of_member(owner: User, *, tenant_id: int) -> Access:
    """Return what the owner of a token may do now; raises AuthenticationFailed once they left."""
    if not owner.is_active:
        raise AuthenticationFailed("The owner of this API key is not active.")
    if not owner.memberships.filter(tenant_id=tenant_id).exists():
        raise AuthenticationFailed("The owner of this API key is no member of its tenant.")
    return owner.access


def _scopes_of(access: Access, *, tenant_id: int) -> frozenset[str]:
    return frozenset(
        scope
        for scope, permissions in SCOPES.items()
        if access.covers(permissions, tenant_id=tenant_id)
    )


@every_tenant("whose it is, is what a token says")
def principal_of_token(token_id: int, *, family_id: int | None = None) -> Principal:
    """Return who a token belongs to, for work that goes on after the request that asked for it.

    family_id: of the JWT that asked; that it has expired since does not matter.

    Raises:
        AuthenticationFailed: gone, revoked or expired, or its tenant is switched off.
    """
    token = ApiToken.objects.select_related("tenant__plan", "owner").filter(pk=token_id).first()
    if token is None:
        raise AuthenticationFailed
    now = timezone.now()
    if family_id is None:
        return principal_of_live(token, now=now)
    family = TokenFamily.objects.filter(pk=family_id, api_token=token).first()
    if family is None:
        raise AuthenticationFailed("This token was revoked.", code="token_revoked")
    family.api_token = token
    return principal_of_family(family, now=now)


def principal_of_family(family: TokenFamily, *, now: datetime) -> Principal:
    """Return who the tokens of a family belong to: its API token's principal, with no more scopes
    than the family was given.

    Raises:
        AuthenticationFailed: it, its API token or whoever that belongs to is no longer in force.
    """
    if family.revoked_at is not None:
        raise AuthenticationFailed("This token was revoked.", code="token_revoked")
    principal = principal_of_live(family.api_token, now=now)
    return replace(
        principal, scopes=principal.scopes & frozenset(family.scopes), family_id=family.pk
    )


def address_check(principal: Principal, *, address: Address | None) -> None:
    """Raise PermissionDenied where a token may not be used from an address."""
    if principal.networks and (address is None or not is_within(address, principal.networks)):
        raise PermissionDenied(
            "This API key may not be used from this address.", code="network_not_allowed"
        )


def principal_of_secret(secret: str) -> Principal:
    """As ``grant_of_secret``, without the times."""
    return grant_of_secret(secret).principal


@every_tenant("where somebody works is what their memberships say")
def principal_of_user(user: User) -> Principal:
    """Return the principal of a signed-in person, in the tenant that they work in.

    Raises:
        PermissionDenied: switched off, or a member of no active tenant. That they may use nothing
            there is said by their ``scopes``.
        Unavailable: the database cannot be asked.
    """
    if not user.is_active:
        raise PermissionDenied("This user is not active.")
    try:
        tenant = tenant_of_user(user)
        access = user.access
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
        prices=Prices.of(tenant.plan),
        weight=tenant.plan.weight,
        allows_judging=tenant.allows_judging,
        user_id=user.pk,
        subject_id=user.pk,
        scopes=_scopes_of(access, tenant_id=tenant.pk) - OWNED_SCOPES,  # those are of tokens
        uses_every_route=access.may(USE_ROUTE),
    )


@every_tenant("streams of many tenants are looked at together")
def identities_in_force(identities: Collection[Identity]) -> set[Identity]:
    """Return those that may still use models, in four queries, or five where JWTs are among them.
    One whose token expired meanwhile still counts: what was begun in time may end; what was revoked
    may not."""
    owners = {
        token_id: (tenant_id, owner_id)
        for token_id, tenant_id, owner_id in ApiToken.objects.filter(
            pk__in={each.api_token_id for each in identities if each.api_token_id is not None},
            revoked_at=None,
            tenant__is_active=True,
        ).values_list("pk", "tenant_id", "owner_id")
    }
    people = {each.user_id for each in identities if each.user_id is not None}
    people |= {owner_id for _, owner_id in owners.values() if owner_id is not None}
    members = set(
        User.objects.filter(
            pk__in=people, is_active=True, memberships__tenant__is_active=True
        ).values_list("pk", "memberships__tenant_id")
    )
    holders = holders_of(USE_ROUTE, people)
    families = set(
        TokenFamily.objects.filter(
            pk__in={each.family_id for each in identities if each.family_id is not None},
            revoked_at=None,
        ).values_list("pk", flat=True)
    )

    def is_in_force(identity: Identity) -> bool:
        tenant_id, person = identity.tenant_id, identity.user_id
        if identity.family_id is not None and identity.family_id not in families:
            return False
        if identity.api_token_id is not None:
            token_tenant_id, person = owners.get(identity.api_token_id, (None, None))
            if token_tenant_id != tenant_id:
                return False
        if person is None:
            return True  # the tenant's own token
        return (person, tenant_id) in members and holders.include(person, tenant_id=tenant_id)

    return {each for each in identities if is_in_force(each)}


def permission_names(user: User) -> set[str]:
    """Return what a user was given, everywhere or in some tenant, as ``app.codename``; also while
    they are switched off."""
    held = held_by(user)
    return set(held.platform.union(*held.tenants.values()))


def token_get(token_id: int, *, tenant_id: int) -> ApiToken | None:
    """Return a tenant's token with its owner, revoked ones too."""
    tokens = ApiToken.objects.select_related("owner")
    return tokens.filter(pk=token_id, tenant_id=tenant_id).first()


def token_among(
    tenant_ids: Collection[int] | None, *, token_id: int | None = None, prefix: str | None = None
) -> ApiToken | None:
    """Return a token of these tenants, or of any where that is None, by its number or by how lists
    show that it begins."""
    named = {"pk": token_id} if prefix is None else {"prefix": prefix.removesuffix("…")}
    return ApiToken.objects.of_tenants(tenant_ids).select_related("owner").filter(**named).first()


def person_behind(principal: Principal) -> User:
    """Return whose power a principal has, as they are at this moment.

    Raises:
        PermissionDenied: nobody's, because it is the tenant's own token, or they are switched off.
    """
    user = None
    if principal.subject_id is not None:
        user = User.objects.filter(pk=principal.subject_id, is_active=True).first()
    if user is None:
        raise PermissionDenied("Only a token that belongs to somebody may do this.")
    return user


@every_tenant("the token was let in a moment ago, and is found by its id")
def is_themselves(user: User | None, *, api_token_id: int | None) -> bool:
    """Return whether it is certain that a person acts, and which one: no service account, and no
    token whose secret somebody else was shown."""
    if user is None or user.is_service:
        return False
    if api_token_id is None:
        return True
    return ApiToken.objects.filter(pk=api_token_id, created_by_id=user.pk).exists()


def known_person(actor: Actor) -> User | None:
    """Return the person who acts, where it is certain which one it is: see ``is_themselves``."""
    if actor.id is None:
        return None
    if actor.kind != "token":
        user = User.objects.filter(pk=actor.id).first()
        return user if is_themselves(user, api_token_id=None) else None
    with every_tenant("the token was let in a moment ago, and is found by its id"):
        user = User.objects.filter(api_tokens=actor.id).first()
    return user if is_themselves(user, api_token_id=actor.id) else None


def user_named(username: str) -> User | None:
    return User.objects.filter(username=username).first()


def username_of(user_id: int) -> str | None:
    return User.objects.filter(pk=user_id).values_list("username", flat=True).first()


@every_tenant("whether a person is let in at all")
def is_any_group_mapped(groups: Collection[str]) -> bool:
    """Whether one of these groups of the single sign-on provider gives a role here."""
    return GroupMapping.objects.filter(group__in=groups).exists()
