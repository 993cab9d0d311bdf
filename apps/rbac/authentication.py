"""The check of API tokens and JWTs at the doors, with a memory that never outlives a revocation by
more than the poll of the change stamps, nor ten seconds in any case."""

import logging
import time
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.core.memory import Memory
from apps.rbac.jwt_tokens import grant_of_jwt, public_keys
from apps.rbac.selectors import TokenGrant, grant_of_secret, secret_digest
from apps.rbac.services import api_token_touch
from apps.rbac.types import SECRET_MARK, Principal

logger = logging.getLogger(__name__)


class TokenCache:
    """Process-local and bounded, for one event loop. Only the SHA-256 of a secret is kept.

    Subscribe ``forget`` to the stamp ``access``.
    """

    def __init__(
        self,
        *,
        life_s: float = 10.0,
        size: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory: Memory[str, Principal] = Memory(life_s=life_s, size=size, clock=clock)
        self._keys: Memory[str, list[dict[str, str]]] = Memory(life_s=life_s, size=1, clock=clock)

    def forget(self, _stamp: str = "") -> None:
        self._memory.forget()
        self._keys.forget()

    async def authenticate(self, secret: str) -> Principal:
        """Return the principal of a live token; as ``grant_of_secret`` and ``grant_of_jwt``
        raise."""

        async def look_up() -> tuple[Principal, float | None]:
            grant = await database_hop(_grant_and_touch, secret)
            if grant.expires_at is None:
                return grant.principal, None
            return grant.principal, (grant.expires_at - timezone.now()).total_seconds()

        return await self._memory.get(secret_digest(secret), look_up)

    async def public_keys(self) -> list[dict[str, str]]:
        """Return the keys that JWTs are verified with, as a JWK set has them; raises Unavailable
        when the database cannot be asked."""

        async def look_up() -> tuple[list[dict[str, str]], None]:
            try:
                return await database_hop(public_keys), None
            except (DatabaseError, InterfaceError) as error:
                raise Unavailable("The keys cannot be read at the moment.") from error

        return await self._keys.get("", look_up)


def _grant_and_touch(secret: str) -> TokenGrant:
    grant = grant_of_secret(secret) if secret.startswith(SECRET_MARK) else grant_of_jwt(secret)
    token_id = grant.principal.api_token_id
    if token_id is not None and grant.is_touch_due:
        try:
            api_token_touch(token_id)
        except (DatabaseError, InterfaceError) as error:  # a note in a list refuses nobody
            logger.warning("The last use of token %d was not noted: %s", token_id, error)
    return grant
