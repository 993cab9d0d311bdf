"""Reads of JWTs: whether one is good, whose it is, and with which keys others may check."""

from datetime import datetime

from django.db import DatabaseError, InterfaceError
from django.db.models import Q, QuerySet
from django.utils import timezone

from apps.core.exceptions import AuthenticationFailed, Unavailable
from apps.core.tenancy import every_tenant
from apps.rbac.models import JwtKey, TokenFamily
from apps.rbac.selectors import TOUCH_EVERY, TokenGrant, principal_of_family
from apps.rbac.signing import Claims, Use, claims_of, invalid_token, kid_of


@every_tenant("whose it is, is what a token says")
def grant_of_jwt(token: str) -> TokenGrant:
    """Return what an access token admits: in two queries, and three more where its API token has an
    owner.

    Raises:
        AuthenticationFailed: not signed by us, expired or not yet valid; or its family or its API
            token is revoked, or whoever that belongs to is switched off.
        Unavailable: the database cannot be asked.
    """
    if token.count(".") != 2:
        raise AuthenticationFailed
    kid = kid_of(token, uses=("access",))
    try:
        now = timezone.now()
        claims = claims_verified(token, kid=kid, now=now)
        family = family_of(claims)
        principal = principal_of_family(family, now=now)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The token cannot be checked at the moment.") from error
    api_token = family.api_token
    return TokenGrant(
        principal=principal,
        expires_at=min(claims.expires_at, api_token.expires_at or claims.expires_at),
        is_touch_due=(api_token.last_used_at is None or now - api_token.last_used_at > TOUCH_EVERY),
    )


def claims_of_token(token: str, *, uses: tuple[Use, ...]) -> Claims:
    """Return what a token of one of these uses says; raises AuthenticationFailed."""
    return claims_verified(token, kid=kid_of(token, uses=uses), now=timezone.now())


def claims_verified(token: str, *, kid: str, now: datetime) -> Claims:
    """Return what a token says; raises AuthenticationFailed, also where its key is no longer
    good."""
    public_x = _keys_verifying(now).filter(kid=kid).values_list("public_x", flat=True).first()
    if public_x is None:
        raise invalid_token()
    return claims_of(token, public_x=public_x)


@every_tenant("whose it is, is what a token says")
def family_of(claims: Claims, *, is_locked: bool = False) -> TokenFamily:
    """Return the family of a token, with whom it belongs to; raises AuthenticationFailed where
    there is none. is_locked: until the end of the caller's transaction."""
    families = TokenFamily.objects.select_related("api_token__tenant__plan", "api_token__owner")
    if is_locked:
        families = families.select_for_update(of=("self",))
    family = families.filter(public_id=claims.family).first()
    if family is None:
        raise invalid_token()
    return family


def public_keys() -> list[dict[str, str]]:
    """Return the keys that verify now, as a JWK set has them (RFC 8037), the newest first."""
    return [
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": key.algorithm,
            "kid": key.kid,
            "x": key.public_x,
        }
        for key in _keys_verifying(timezone.now()).order_by("-id")
    ]


def _keys_verifying(now: datetime) -> "QuerySet[JwtKey]":
    return JwtKey.objects.filter(Q(verifies_until=None) | Q(verifies_until__gt=now))
