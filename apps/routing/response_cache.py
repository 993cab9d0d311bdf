"""Answers that are kept for equal requests: in this process's memory, and in Redis where processes
share one. It holds bytes under keys: what they mean and which requests are equal, the doors say."""

import asyncio
import logging
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Self

from django.conf import settings
from django.core.cache import caches
from redis.exceptions import RedisError

from apps.routing.types import person_stamp, tenant_stamp, version_stamp

logger = logging.getLogger(__name__)

ALIAS: Final = "responses"
_REDIS: Final = "django.core.cache.backends.redis.RedisCache"
_PREFIX: Final = "response:"
# An entry says itself when it ends, so that one that moves nearer does not live longer; for whom it
# was made, and how often their answers had been purged then.
_HEAD: Final = struct.Struct(">d16sQ")

_executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="responses")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How often the answers of a tenant, those of a model version, and those that were made for one
    person were purged. person: of the tenant's, as ``person_digest`` has them; empty is nobody.

    What equal requests share of it belongs into their key: after a purge no process finds what was
    kept before, in whatever tier. Of the person the entry itself tells.
    """

    tenant_id: int
    model_version_id: int
    n_tenant: int
    n_version: int
    person: str = ""
    n_person: int = 0

    @classmethod
    def of(
        cls, stamps: Mapping[str, int], *, tenant_id: int, model_version_id: int, person: str = ""
    ) -> Self:
        return cls(
            tenant_id=tenant_id,
            model_version_id=model_version_id,
            n_tenant=stamps.get(tenant_stamp(tenant_id), 0),
            n_version=stamps.get(version_stamp(model_version_id), 0),
            person=person,
            n_person=stamps.get(person_stamp(tenant_id, person), 0) if person else 0,
        )

    @property
    def shared(self) -> tuple[int, ...]:
        return self.tenant_id, self.model_version_id, self.n_tenant, self.n_version

    def is_current(self, stamps: Mapping[str, int]) -> bool:
        return self == self.of(
            stamps,
            tenant_id=self.tenant_id,
            model_version_id=self.model_version_id,
            person=self.person,
        )


class ResponseCache:
    """Of one event loop. Bounded in entries and in bytes; the least recently used goes first."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, Generation]] = OrderedDict()
        self._is_shared = settings.CACHES.get(ALIAS, {}).get("BACKEND") == _REDIS
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, key: str) -> bytes | None:
        """Return what this process remembers."""
        found = self._entries.get(key)
        if found is None:
            return None
        if not self._is_good(found[0]):
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[0][_HEAD.size :]

    async def fetch(
        self, key: str, *, generation: Generation, stamps: Mapping[str, int]
    ) -> bytes | None:
        """Return what another process has kept, and remember it. Redis that is away is no error:
        the request then runs. generation: of the request that asks."""
        if not self._is_shared:
            return None
        loop = asyncio.get_running_loop()
        try:
            entry = await loop.run_in_executor(_executor, caches[ALIAS].get, _PREFIX + key)
        except (RedisError, OSError) as error:
            logger.warning("Kept answers cannot be read: %s", error)
            return None
        if not isinstance(entry, bytes) or len(entry) < _HEAD.size or not self._is_good(entry):
            return None
        made_for = _made_for(entry, generation)
        if not made_for.is_current(stamps):
            return None
        self._remember(key, entry, made_for)
        return entry[_HEAD.size :]

    async def keep(self, key: str, data: bytes, *, generation: Generation) -> None:
        """Remember an answer and share it; nothing where it is too large."""
        if len(data) > settings.RESPONSE_CACHE_MAX_ANSWER_BYTES:
            return
        ttl_s = settings.RESPONSE_CACHE_TTL_S
        person = bytes.fromhex(generation.person)
        entry = _HEAD.pack(self._clock() + ttl_s, person, generation.n_person) + data
        self._remember(key, entry, generation)
        if not self._is_shared:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(_executor, caches[ALIAS].set, _PREFIX + key, entry, ttl_s)
        except (RedisError, OSError) as error:
            logger.warning("An answer cannot be shared: %s", error)

    def purge(self, stamps: Mapping[str, int]) -> None:
        """Drop from memory what was purged; no key leads there any more."""
        for key, (_, generation) in list(self._entries.items()):
            if not generation.is_current(stamps):
                self._drop(key)

    def _is_good(self, entry: bytes) -> bool:
        until_s, _, _ = _HEAD.unpack_from(entry)
        return bool(self._clock() < until_s)

    def _remember(self, key: str, entry: bytes, generation: Generation) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = entry, generation
        self.n_bytes += len(entry)
        while self._entries and (
            len(self._entries) > settings.RESPONSE_CACHE_MAX_ENTRIES
            or self.n_bytes > settings.RESPONSE_CACHE_MAX_BYTES
        ):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry, _ = self._entries.pop(key)
        self.n_bytes -= len(entry)


def _made_for(entry: bytes, asked: Generation) -> Generation:
    """Return the generation of an entry, which is another person's than that of who asks."""
    _, person, n_person = _HEAD.unpack_from(entry)
    return replace(asked, person=person.hex() if any(person) else "", n_person=n_person)
