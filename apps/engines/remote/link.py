"""HTTP to one remote server: kept connections, certificates checked, no redirects, no proxies, and
no connection to an address that ``core.outbound`` refuses."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver

from apps.core.outbound import UnsafeUrl, guarded_socket, url_check
from apps.core.sealing import SealBroken, unseal
from apps.engines.exceptions import (
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineUnresponsive,
)
from apps.engines.remote.faults import MAX_ERROR_BYTES, fault_of
from apps.engines.remote.reading import MAX_ANSWER_BYTES
from apps.engines.types import REMOTE_KEY_PURPOSE, RemoteTarget

# Under the five seconds after which common servers close what is idle: a request that is sent just
# then would be lost.
_KEEP_ALIVE_S: Final = 4.0
_JSON: Final = {"Content-Type": "application/json"}
_USER_AGENT: Final = "nano-llm-engine"


class Link:
    """One session, for one event loop. It counts what is on its way, so that no crowd waits."""

    def __init__(self, target: RemoteTarget, *, resolver: AbstractResolver | None = None) -> None:
        self._target = target
        self._url = target.base_url.rstrip("/")
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._secrets: tuple[str, ...] = ()
        self._n_asking = 0

    @property
    def is_closed(self) -> bool:
        return self._session is None

    def open(self) -> None:
        """Get ready; nothing is sent.

        Raises:
            EngineDead: its key or certificates cannot be read, or its URL is refused.
        """
        key = _key_of(self._target)
        try:
            self._session = _session_open(self._target, key=key, resolver=self._resolver)
        except UnsafeUrl as error:
            raise EngineDead(f"the URL of the remote server is refused: {error}") from None
        host = self._url.partition("://")[2].partition("/")[0]
        self._secrets = (key, host, host.partition(":")[0], self._target.model)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def check_open(self) -> aiohttp.ClientSession:
        """Return the session; raises EngineDead where it was closed."""
        if self._session is None:
            raise EngineDead("the connection was closed here")
        return self._session

    def check_room(self) -> None:
        """Refuse what would wait behind more than one round of those that run."""
        if self._n_asking >= 2 * self._target.max_concurrency:
            raise EngineOverloaded("too many requests wait for the remote server", retry_after_s=1)

    @asynccontextmanager
    async def got(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Get a good answer; raises EngineClientError for one that is none."""
        session = self.check_open()
        async with session.get(f"{self._url}/{path}", allow_redirects=False) as answer:
            await self._check(answer)
            yield answer

    @asynccontextmanager
    async def posted(self, path: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; as ``got``."""
        session = self.check_open()
        self._n_asking += 1
        try:
            async with session.post(
                f"{self._url}/{path}", data=body, headers=_JSON, allow_redirects=False
            ) as answer:
                await self._check(answer)
                yield answer
        finally:
            self._n_asking -= 1

    @asynccontextmanager
    async def translated(self) -> AsyncIterator[None]:
        """Raise what goes wrong on the way as what it is to a caller; details are for the log."""
        try:
            yield
        except TimeoutError as error:
            is_full = self._n_asking >= self._target.max_concurrency
            if isinstance(error, aiohttp.ConnectionTimeoutError) and is_full:
                text = "no connection to the remote server came free in time"
                raise EngineOverloaded(text, retry_after_s=1.0) from error
            raise EngineUnresponsive("the remote server was silent for too long") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineDead(f"the remote server is gone: {error!r}") from error

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        # Compressed is what nobody asked for, and what no bound would hold for.
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise EngineFault("the remote server compressed its answer unasked")
        if answer.status != 200:
            raise fault_of(
                answer.status,
                await answer.content.read(MAX_ERROR_BYTES),
                retry_after=answer.headers.get("Retry-After"),
                secrets=self._secrets,
            )


async def whole_body(answer: aiohttp.ClientResponse) -> bytes:
    """Return a body; raises EngineFault where it is more than an answer can be."""
    data = bytearray()
    async for part in answer.content.iter_any():
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise EngineFault("the remote server sends more than an answer can be")
    return bytes(data)


def _key_of(target: RemoteTarget) -> str:
    """Return the key that the server wants to see; empty where it wants none.

    Raises:
        EngineDead: it cannot be read.
    """
    if not target.key_sealed:
        return ""
    try:
        return unseal(target.key_sealed, purpose=REMOTE_KEY_PURPOSE).decode()
    except SealBroken as error:
        raise EngineDead(f"the key of the remote server cannot be read: {error}") from None


def _session_open(
    target: RemoteTarget, *, key: str, resolver: AbstractResolver | None = None
) -> aiohttp.ClientSession:
    """Return a session; nothing is sent yet. Reads certificates from the disk.

    Raises:
        EngineDead: the certificates cannot be read.
    """
    parts = url_check(target.base_url)
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(
        limit=target.max_concurrency,
        keepalive_timeout=_KEEP_ALIVE_S,
        ssl=_tls(target.ca_file),
        resolver=resolver,
        socket_factory=guarded_socket(is_plain=parts.scheme == "http"),
    )
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        raise_for_status=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=target.connect_timeout_s,
            sock_connect=target.connect_timeout_s,
        ),
    )


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise EngineDead(f"the certificates in {ca_file} cannot be read: {error}") from error
