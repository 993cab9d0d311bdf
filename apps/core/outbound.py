"""Where this platform may connect to on an operator's word: the guard against a URL that leads back
into the house. What is written is judged by ``url_parts``; what holds is ``guarded_socket``, which
sees the very address that is about to be connected to, whatever a name resolves to by then."""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings

from apps.core.addresses import Address, Network, is_within

MAX_URL_CHARS: Final = 500

# Where clouds tell a machine who it is, with its credentials. Never, whatever is allowed.
METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "168.63.129.16",
        "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
    )
)  # fmt: skip
# Of the one part of IPv6 that is routed, what carries IPv4 addresses or is no host's.
_GLOBAL_IPV6: Final = ip_network("2000::/3")
_NOT_HOSTS: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "192.88.99.0/24")
)
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")
_NUMERIC: Final = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)")

AddrInfo = tuple[Any, Any, int, str, tuple[Any, ...]]


class UnsafeUrl(ValueError):
    """The text says what is wrong with a URL, for who wrote it."""


class AddressRefused(OSError):
    """Nothing may be connected to there; an error of connecting, as others are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlParts:
    """address: of a host that is written as one."""

    scheme: str
    host: str
    port: int | None
    address: Address | None

    @property
    def origin(self) -> tuple[str, str, int]:
        default = 443 if self.scheme == "https" else 80
        return self.scheme, self.host.lower(), self.port or default


def url_parts(url: str) -> UrlParts:
    """Take a URL apart that something is to be asked of; raises UnsafeUrl."""
    if len(url) > MAX_URL_CHARS or not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise UnsafeUrl(
            f"Write at most {MAX_URL_CHARS} plain ASCII characters, without spaces or backslashes."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnsafeUrl(f"This is no URL: {error}.") from None
    if parts.scheme not in ("http", "https"):
        raise UnsafeUrl("It must begin with https:// or http://.")
    if "@" in parts.netloc:
        raise UnsafeUrl("It must not hold a name or password.")
    if "?" in url or "#" in url:
        raise UnsafeUrl("It must not have a query or a fragment.")
    if ".." in parts.path or "%" in url:
        raise UnsafeUrl("Its path must be plain, without '..' or '%'.")
    host = parts.hostname or ""
    address = _host_address(host)
    if "[" in parts.netloc and not isinstance(address, IPv6Address):
        raise UnsafeUrl("Brackets are for IPv6 addresses.")
    return UrlParts(scheme=parts.scheme, host=host, port=port, address=address)


def url_check(url: str) -> UrlParts:
    """Take a URL apart as ``url_parts``; refuse too what can be told to lead nowhere good without
    asking for names."""
    parts = url_parts(url)
    address = parts.address
    if parts.host.lower().rstrip(".").rpartition(".")[2] == "localhost":
        address = IPv4Address("127.0.0.1")
    if address is not None and (why := refusal(address, is_plain=parts.scheme == "http")):
        raise UnsafeUrl(f"{why}.")
    return parts


def guarded_socket(*, is_plain: bool) -> Callable[[AddrInfo], socket.socket]:
    """Return what makes sockets for connections, and refuses by AddressRefused.

    is_plain: nothing is encrypted there.
    """

    def make(info: AddrInfo) -> socket.socket:
        family, kind, protocol, _, where = info
        if why := refusal(ip_address(str(where[0]).partition("%")[0]), is_plain=is_plain):
            raise AddressRefused(why)
        return socket.socket(family=family, type=kind, proto=protocol)

    return make


def refusal(address: Address, *, is_plain: bool) -> str | None:
    """Return why nothing may be connected to at an address; None where it may be."""
    embedded = _embedded(address)
    if address in METADATA or any(each in METADATA for each in embedded):
        return f"{address} is where a cloud tells a machine its credentials: never"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # the system connects to that
    if is_within(address, _allowed(tuple(settings.REMOTE_ALLOWED_NETWORKS))):
        return None
    if not _is_public(address):
        return f"{address} is not a public address, and not in REMOTE_ALLOWED_NETWORKS"
    if is_plain:
        return f"http:// is for addresses in REMOTE_ALLOWED_NETWORKS only, and {address} is not"
    return None


def _is_public(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return False
    return not is_within(address, _NOT_HOSTS)


def _embedded(address: Address) -> Sequence[IPv4Address]:
    """Return the IPv4 addresses that ways of carrying them in IPv6 may see in an address."""
    if isinstance(address, IPv4Address):
        return ()
    number = int(address)
    found = [IPv4Address(number & 0xFFFFFFFF)]  # mapped, compatible, NAT64
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    return found


def _host_address(host: str) -> Address | None:
    """Return the address that a host is written as; None of a name. Raises UnsafeUrl."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise UnsafeUrl("It must name a host.")
    if _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2]):
        raise UnsafeUrl("Write an address in its usual form, such as 192.0.2.7.")
    return None


@lru_cache(maxsize=8)
def _allowed(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)
