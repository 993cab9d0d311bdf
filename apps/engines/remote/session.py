"""HTTP to one remote server: kept connections, certificates checked, no redirects, no proxies, and
no connection to an address that ``core.outbound`` refuses."""

import ssl
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver

from apps.core.outbound import guarded_socket, url_check
from apps.core.sealing import SealBroken, unseal
from apps.engines.exceptions import EngineDead
from apps.engines.types import REMOTE_KEY_PURPOSE, RemoteTarget

# Under the five seconds after which common servers close what is idle: a request that is sent just
# then would be lost.
_KEEP_ALIVE_S: Final = 4.0
_USER_AGENT: Final = "nano-llm-engine"


def key_of(target: RemoteTarget) -> str:
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


def session_open(
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


def is_encoded(headers: Mapping[str, str]) -> bool:
    """Whether a body came compressed, which nobody asked for and no bound would hold for."""
    return headers.get("Content-Encoding", "identity").lower() != "identity"


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise EngineDead(f"the certificates in {ca_file} cannot be read: {error}") from error
