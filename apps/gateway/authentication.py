"""Who is at the door: API tokens, and the JWTs that they are exchanged for, in the form that every
HTTP and WebSocket door reads them."""

from typing import Final

from apps.core.addresses import Address
from apps.core.exceptions import AuthenticationFailed, PermissionDenied
from apps.gateway.runtime import gateway_runtime
from apps.rbac.selectors import address_check
from apps.rbac.types import Principal

MISSING: Final = (
    "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'."
)


async def principal_of_header(value: str | None, *, address: Address | None) -> Principal:
    """Return who an ``Authorization`` header names. address: where the request comes from.

    Raises:
        AuthenticationFailed: missing, malformed, unknown, expired or revoked.
        PermissionDenied: the token may not be used from there.
        Unavailable: the database cannot be asked.
    """
    if not value:
        raise AuthenticationFailed(MISSING, code="missing_api_key")
    scheme, _, secret = value.partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationFailed(MISSING, code="missing_api_key")
    return await principal_of_secret(secret.strip(), address=address)


async def principal_of_secret(secret: str, *, address: Address | None) -> Principal:
    """Return who a token belongs to; raises as ``principal_of_header`` does."""
    if not secret.isascii():
        raise AuthenticationFailed
    principal = await gateway_runtime().tokens.authenticate(secret)
    address_check(principal, address=address)
    return principal


def check_scope(principal: Principal, scope: str) -> None:
    """Raise PermissionDenied where a principal may not use what ``scope`` names."""
    if scope not in principal.scopes:
        raise PermissionDenied(
            f"This needs the scope {scope!r}, which you do not have.", code="insufficient_scope"
        )
