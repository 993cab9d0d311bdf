"""Writes of JWTs: an API token is exchanged for a family of them, which lives by refreshing and
ends with the API token, by revocation, or when a used refresh token is shown again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import IntegrityError, transaction
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.addresses import Address
from apps.core.exceptions import (
    AuthenticationFailed,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Unavailable,
)
from apps.core.ids import new_id
from apps.core.sealing import SealBroken
from apps.core.services import change_stamp_bump
from apps.core.tenancy import every_tenant
from apps.rbac.jwt_tokens import claims_of_token, family_of
from apps.rbac.models import ApiToken, JwtKey, TokenFamily
from apps.rbac.selectors import address_check, principal_of_family, principal_of_live
from apps.rbac.signing import key_draw, private_key, token_sign
from apps.rbac.types import JWT_ALGORITHM, SCOPES, Principal, TokenPair

ACCESS_LIFE: Final = timedelta(minutes=15)
FAMILY_LIFE: Final = timedelta(hours=24)
# Over the longest life of a token, for whoever is about to sign when a key is replaced.
KEY_GRACE: Final = timedelta(minutes=5)
# Past its expiry, for what was begun in time: a batch may run for a day, and asks for its family.
FAMILY_KEPT: Final = timedelta(days=2)
MAX_FAMILIES: Final = 1000
FULL_RETRY_S: Final = 60.0


@transaction.atomic
def token_pair_issue(
    *, principal: Principal, scopes: Sequence[str] | None = None, address: Address | None = None
) -> TokenPair:
    """Make a family of JWTs for whoever shows an API token, and the first pair of it.

    scopes: a part of the API token's; None is all of them.

    Raises:
        AuthenticationFailed: the API token is no longer in force.
        PermissionDenied: it is itself a JWT, or would do more than the API token.
        InvalidRequest: a scope is unknown, or none is named.
        Overloaded: too many families of the API token are in force.
        Unavailable: nothing can be signed.
    """
    if principal.api_token_id is None or principal.family_id is not None:
        raise PermissionDenied("Only an API key is exchanged for tokens.", code="api_key_required")
    now = timezone.now()
    tokens = ApiToken.objects.select_related("tenant__plan", "owner")
    api_token = tokens.filter(pk=principal.api_token_id, tenant_id=principal.tenant_id).first()
    if api_token is None:
        raise AuthenticationFailed
    fresh = principal_of_live(api_token, now=now)
    granted = _scopes_granted(fresh, scopes)
    families = TokenFamily.objects.filter(api_token=api_token)
    families.filter(expires_at__lte=now - FAMILY_KEPT).delete()
    if families.filter(revoked_at=None, expires_at__gt=now).count() >= MAX_FAMILIES:
        raise Overloaded(
            "Too many tokens of this API key are in force.", retry_after_s=FULL_RETRY_S
        )
    family = TokenFamily(
        public_id=new_id("family"),
        api_token=api_token,
        scopes=list(granted),
        refresh_jti=new_id("jti"),
        expires_at=min(now + FAMILY_LIFE, api_token.expires_at or now + FAMILY_LIFE),
    )
    family.full_clean()
    family.save()
    _event(family, "jwt.issued", address=address, scopes=list(granted))
    return _pair(family, scopes=granted, now=now)


def _scopes_granted(principal: Principal, asked: Sequence[str] | None) -> tuple[str, ...]:
    wanted = principal.scopes if asked is None else frozenset(asked)
    if unknown := sorted(wanted - set(SCOPES)):
        raise InvalidRequest(
            f"There is no scope {unknown[0][:40]!r}.", code="invalid_value", param="scopes"
        )
    if asked is not None and not wanted:
        raise InvalidRequest("Name a scope.", code="invalid_value", param="scopes")
    if not wanted or wanted - principal.scopes:
        missing = sorted(wanted - principal.scopes)
        what = f"the scope {missing[0]!r}" if missing else "a scope"
        raise PermissionDenied(f"This API key does not have {what}.", code="insufficient_scope")
    return tuple(scope for scope in SCOPES if scope in wanted)


@every_tenant("whose it is, is what a token says")
def token_pair_refresh(*, refresh_token: str, address: Address | None = None) -> TokenPair:
    """Exchange the last refresh token of a family for a new pair. An older one of the family ends
    it: somebody has a copy, and it cannot be known who.

    Raises:
        AuthenticationFailed: not valid, used before, or no longer in force.
        PermissionDenied: not from this address.
        Unavailable: nothing can be signed.
    """
    with transaction.atomic():
        now = timezone.now()
        claims = claims_of_token(refresh_token, uses=("refresh",))
        family = family_of(claims, is_locked=True)
        principal = principal_of_family(family, now=now)
        if claims.jti == family.refresh_jti:
            address_check(principal, address=address)
            family.refresh_jti = new_id("jti")
            family.save(update_fields=["refresh_jti", "updated_at"])
            _event(family, "jwt.refreshed", address=address)
            granted = tuple(scope for scope in SCOPES if scope in principal.scopes)
            return _pair(family, scopes=granted, now=now)
        _revoke(family, "jwt.reused", address=address)
    raise AuthenticationFailed(
        "This refresh token was used before; its family is revoked.", code="token_reused"
    )


@every_tenant("whose it is, is what a token says")
@transaction.atomic
def token_family_revoke(*, token: str, address: Address | None = None) -> None:
    """End the family of an access or refresh token, from wherever it is asked; once it has ended
    nothing changes. Raises AuthenticationFailed where the token is not valid."""
    claims = claims_of_token(token, uses=("access", "refresh"))
    family = family_of(claims, is_locked=True)
    if family.revoked_at is None:
        _revoke(family, "jwt.revoked", address=address)


@transaction.atomic
def token_family_end(*, family: TokenFamily, actor: Actor) -> None:
    """End a family for somebody who may change its API token; once it has ended nothing changes."""
    stored = TokenFamily.objects.select_for_update(of=("self",)).select_related("api_token")
    current = stored.get(pk=family.pk, api_token_id=family.api_token_id)
    if current.revoked_at is not None:
        return
    _end(current)
    event_record(
        action="jwt.revoked",
        actor=actor,
        obj=current,
        tenant_id=current.tenant_id,
        changes={"api_token": current.api_token.prefix},
    )


def _revoke(family: TokenFamily, action: str, *, address: Address | None) -> None:
    _end(family)
    _event(family, action, address=address)


def _end(family: TokenFamily) -> None:
    family.revoked_at = timezone.now()
    family.save(update_fields=["revoked_at", "updated_at"])
    change_stamp_bump("access")


@every_tenant("with the keys every family may end")
@transaction.atomic
def jwt_key_rotate(*, actor: Actor, at_once: bool = False) -> JwtKey:
    """Sign with a new key from now on. The one before verifies until the last token that it signed
    is over, unless the keys are to end at once, and every family with them.

    at_once: for a key that others may have.
    """
    list(JwtKey.objects.select_for_update().order_by("pk"))  # one after the other
    now = timezone.now()
    JwtKey.objects.filter(verifies_until__lte=now).delete()
    JwtKey.objects.filter(verifies_until=None).update(
        verifies_until=now + FAMILY_LIFE + KEY_GRACE, updated_at=now
    )
    if at_once:
        JwtKey.objects.update(verifies_until=now, updated_at=now)
        TokenFamily.objects.filter(revoked_at=None).update(revoked_at=now, updated_at=now)
    key = _key_make()
    event_record(
        action="jwt_key.rotated", actor=actor, obj=key, changes={"ends_others_at_once": at_once}
    )
    change_stamp_bump("access")
    return key


def _key_make() -> JwtKey:
    drawn = key_draw()
    return JwtKey.objects.create(
        kid=drawn.kid,
        algorithm=JWT_ALGORITHM,
        public_x=drawn.public_x,
        private_sealed=drawn.private_sealed,
    )


def _signing_key() -> tuple[str, Ed25519PrivateKey]:
    """Return the key that signs, made on first use; raises Unavailable where it stays sealed."""
    signing = JwtKey.objects.filter(verifies_until=None)
    key = signing.first()
    if key is None:
        try:
            with transaction.atomic():
                key = _key_make()
            change_stamp_bump("access")
        except IntegrityError:  # another process was first: its key counts
            key = signing.get()
    try:
        return key.kid, private_key(key.private_sealed)
    except SealBroken as error:
        raise Unavailable(
            "No token can be signed: SECRET_KEY was changed. Run manage.py rotate_jwt_key.",
            retry_after_s=60.0,  # an operator has to do something first
        ) from error


def _pair(family: TokenFamily, *, scopes: tuple[str, ...], now: datetime) -> TokenPair:
    kid, key = _signing_key()
    api_token = family.api_token
    access_until = min(now + ACCESS_LIFE, family.expires_at)
    shared = {
        "sub": f"api_token:{api_token.pk}",
        "tenant": api_token.tenant.slug,
        "scopes": list(scopes),
        "family": family.public_id,
    }
    access = {**shared, "jti": new_id("jti"), "exp": int(access_until.timestamp())}
    refresh = {**shared, "jti": family.refresh_jti, "exp": int(family.expires_at.timestamp())}
    return TokenPair(
        access_token=token_sign(access, use="access", kid=kid, key=key, now=now),
        refresh_token=token_sign(refresh, use="refresh", kid=kid, key=key, now=now),
        access_expires_at=access_until,
        refresh_expires_at=family.expires_at,
        scopes=scopes,
    )


def _event(
    family: TokenFamily, action: str, *, address: Address | None, **changes: list[str]
) -> None:
    """Note what the program did, without its tokens."""
    api_token = family.api_token
    event_record(
        action=action,
        actor=Actor(
            kind="token",
            id=api_token.pk,
            label=str(api_token),
            ip_address=str(address) if address is not None else None,
        ),
        obj=family,
        tenant_id=api_token.tenant_id,
        changes={
            "api_token": api_token.prefix,
            "expires_at": family.expires_at.isoformat(),
            **changes,
        },
    )
