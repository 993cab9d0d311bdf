"""Who is on a connection, and whether that still holds at a later request on it."""

import time
from dataclasses import replace
from typing import Protocol

from apps.core.addresses import Address
from apps.core.hop import database_hop
from apps.gateway.authentication import check_scope, principal_of_secret
from apps.rbac.selectors import principal_of_user
from apps.rbac.types import Principal
from apps.sign_in.services.sessions import session_person

SESSION_RECHECK_S = 10.0


class Credential(Protocol):
    async def principal(self) -> Principal:
        """Return who this is now; raises AuthenticationFailed once it is revoked, PermissionDenied
        where it may not be used for this, or from here."""


class TokenCredential:
    """An API token; asked anew at each request, which the process's memory makes cheap."""

    def __init__(self, secret: str, *, address: Address | None) -> None:
        self._secret = secret
        self._address = address

    async def principal(self) -> Principal:
        return _for_inference(await principal_of_secret(self._secret, address=self._address))


class SessionCredential:
    """A person who is fully signed in to the admin; asked anew when the last answer has aged."""

    def __init__(self, session_key: str) -> None:
        self._session_key = session_key
        self._principal: Principal | None = None
        self._until_s = 0.0

    async def principal(self) -> Principal:
        if self._principal is None or time.monotonic() > self._until_s:
            self._principal = await database_hop(_principal_of, self._session_key)
            self._until_s = time.monotonic() + SESSION_RECHECK_S
        return _for_inference(self._principal)


def _for_inference(principal: Principal) -> Principal:
    check_scope(principal, "inference")
    return principal


def _principal_of(session_key: str) -> Principal:
    return replace(principal_of_user(session_person(session_key)), session_key=session_key)
