"""The check of API tokens at the doors, with a memory that never outlives a revocation by more
than the poll of the change stamps, nor ten seconds in any case."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apps.core.hop import database_hop
from apps.rbac.selectors import TokenGrant, grant_of_secret, secret_digest
from apps.rbac.services import api_token_touch
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    principal: Principal
    until_s: float


class TokenCache:
    """Process-local and bounded, for one event loop. Only the SHA-256 of a secret is kept.

    Subscribe ``forget`` to the stamp ``access``. A look-up that began before a change is not
    remembered after it, so that a revoked token cannot slip back in.
    """

    def __init__(
        self,
        *,
        life_s: float = 10.0,
        size: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._life_s = life_s
        self._size = size
        self._clock = clock
        self._generation = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def forget(self, _stamp: str = "access") -> None:
        """Forget everything; the next use of each token asks the database."""
        self._generation += 1
        self._entries.clear()

    async def authenticate(self, secret: str) -> Principal:
        """Return the principal of a live token; as ``grant_of_secret`` raises."""
        key = secret_digest(secret)
        entry = self._entries.get(key)
        if entry is not None and self._clock() < entry.until_s:
            return entry.principal
        generation = self._generation
        asked_s = self._clock()
        grant = await database_hop(_grant_and_touch, secret)
        if generation == self._generation:
            self._remember(key, grant=grant, asked_s=asked_s)
        return grant.principal

    def _remember(self, key: str, *, grant: TokenGrant, asked_s: float) -> None:
        life_s = self._life_s
        if grant.expires_at is not None:
            life_s = min(life_s, (grant.expires_at - timezone.now()).total_seconds())
        self._entries[key] = _Entry(principal=grant.principal, until_s=asked_s + life_s)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)


def _grant_and_touch(secret: str) -> TokenGrant:
    grant = grant_of_secret(secret)
    token_id = grant.principal.api_token_id
    if token_id is not None and grant.is_touch_due:
        try:
            api_token_touch(token_id)
        except (DatabaseError, InterfaceError) as error:  # a note in a list refuses nobody
            logger.warning("The last use of token %d was not noted: %s", token_id, error)
    return grant
