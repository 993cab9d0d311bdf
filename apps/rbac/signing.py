"""How JWTs are signed and read: Ed25519 alone, whatever a token says of itself. Who may have one,
and whether it is still in force, is not known here."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings

from apps.core.exceptions import AuthenticationFailed
from apps.core.sealing import seal, unseal
from apps.rbac.types import JWT_ALGORITHM

Use = Literal["access", "refresh"]

# The media types of the header (RFC 9068 has the first); a token of one use is none of the other.
TYPES: Final[dict[Use, str]] = {"access": "at+jwt", "refresh": "rt+jwt"}
# A token is good this much before it was made, for hosts whose clocks are behind.
CLOCK_SLACK: Final = timedelta(seconds=30)
MAX_CHARS: Final = 2048
_REQUIRED: Final = ["iss", "aud", "sub", "exp", "nbf", "iat", "jti"]
_SEALING: Final = "nano-llm: private keys of JWTs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says that its signature vouches for."""

    family: str
    jti: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A pair of keys as a row keeps it."""

    kid: str
    public_x: str
    private_sealed: str


def invalid_token() -> AuthenticationFailed:
    """The one refusal: it does not tell what is wrong, which only a forger wants to know."""
    return AuthenticationFailed("This token is not valid.", code="invalid_token")


def key_draw() -> NewKey:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return NewKey(
        kid=secrets.token_urlsafe(12),
        public_x=_text(public),
        private_sealed=seal(private.private_bytes_raw(), purpose=_SEALING),
    )


def private_key(sealed: str) -> Ed25519PrivateKey:
    """Open a sealed key; raises SealBroken under another secret key."""
    return Ed25519PrivateKey.from_private_bytes(unseal(sealed, purpose=_SEALING))


def token_sign(
    claims: dict[str, Any], *, use: Use, kid: str, key: Ed25519PrivateKey, now: datetime
) -> str:
    """Return a token; iss, aud, iat and nbf are put in here."""
    issued_s = int(now.timestamp())
    return jwt.encode(
        {
            "iss": settings.JWT_ISSUER,
            "aud": settings.JWT_AUDIENCE,
            "iat": issued_s,
            "nbf": issued_s - int(CLOCK_SLACK.total_seconds()),
            **claims,
        },
        key,
        algorithm=JWT_ALGORITHM,
        headers={"kid": kid, "typ": TYPES[use]},
    )


def kid_of(token: str, *, uses: tuple[Use, ...]) -> str:
    """Return which key a token says that it is signed with.

    Raises:
        AuthenticationFailed: it is no JWT in its one spelling, not for these uses, or of another
            algorithm.
    """
    if len(token) > MAX_CHARS or not _is_canonical(token):
        raise invalid_token()
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise invalid_token() from error
    kid, kind = header.get("kid"), header.get("typ")
    if not isinstance(kid, str) or header.get("alg") != JWT_ALGORITHM:
        raise invalid_token()
    if kind not in {TYPES[use] for use in uses}:
        raise invalid_token()
    return kid


def claims_of(token: str, *, public_x: str) -> Claims:
    """Return what a token says once all that it must say holds.

    Raises:
        AuthenticationFailed: not signed by the key, expired, not yet valid, or for somebody else.
    """
    try:
        found = jwt.decode(
            token,
            Ed25519PublicKey.from_public_bytes(_bytes(public_x)),
            algorithms=[JWT_ALGORITHM],
            audience=settings.JWT_AUDIENCE,
            issuer=settings.JWT_ISSUER,
            options={"require": _REQUIRED, "verify_iat": False},
        )
    except jwt.ExpiredSignatureError as error:
        raise AuthenticationFailed("This token has expired.", code="token_expired") from error
    except jwt.PyJWTError as error:
        raise invalid_token() from error
    family, jti = found.get("family"), found["jti"]
    if not isinstance(family, str) or not isinstance(jti, str):
        raise invalid_token()
    return Claims(
        family=family, jti=jti, expires_at=datetime.fromtimestamp(int(found["exp"]), tz=UTC)
    )


def _is_canonical(token: str) -> bool:
    """Whether a token is spelt as it was made: base64 has spare bits, in which a changed token
    would pass for another one with the same signature."""
    try:
        return token == ".".join(_text(_bytes(part)) for part in token.split("."))
    except (binascii.Error, ValueError):
        return False


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


__all__ = [
    "CLOCK_SLACK",
    "Claims",
    "NewKey",
    "Use",
    "claims_of",
    "invalid_token",
    "key_draw",
    "kid_of",
    "private_key",
    "token_sign",
]
