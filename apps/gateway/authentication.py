"""Who is at the door: API tokens in the form that every HTTP and WebSocket door reads them."""

from typing import Final

from apps.core.exceptions import AuthenticationFailed
from apps.gateway.runtime import gateway_runtime
from apps.rbac.types import Principal

MISSING: Final = (
    "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'."
)


async def principal_of_header(value: str | None) -> Principal:
    """Return who an ``Authorization`` header names.

    Raises:
        AuthenticationFailed: missing, malformed, unknown, expired or revoked.
        Unavailable: the database cannot be asked.
    """
    if not value:
        raise AuthenticationFailed(MISSING, code="missing_api_key")
    scheme, _, secret = value.partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationFailed(MISSING, code="missing_api_key")
    return await principal_of_secret(secret.strip())


async def principal_of_secret(secret: str) -> Principal:
    """Return who a token belongs to; raises as ``principal_of_header`` does."""
    if not secret.isascii():
        raise AuthenticationFailed
    return await gateway_runtime().tokens.authenticate(secret)
