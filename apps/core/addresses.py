"""Where a request comes from, behind proxies that are known or none."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from django.conf import settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def client_address(peer: str | None, forwarded_for: str | None) -> Address | None:
    """Return the address that a request comes from; None where it cannot be known.

    peer: of the connection. forwarded_for: the header ``X-Forwarded-For``, which anyone can send:
    it is believed as far as those who wrote it are in ``TRUSTED_PROXIES``, from the right.
    """
    address = _parsed(peer)
    if address is None:
        return None
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and _is_trusted(address):
        before = _parsed(hops.pop())
        if before is None:
            return None
        address = before
    return address


def is_within(address: Address, networks: tuple[Network, ...]) -> bool:
    """Return whether an address is in one of the networks; IPv4 inside IPv6 counts as IPv4."""
    return any(address in network for network in networks)


def counted_as(address: Address) -> str:
    """Return what requests of an address are counted by. Of IPv6 it is the network of 64 bits, all
    of whose addresses one client can use in turn."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, 64), strict=False).network_address)


def _is_trusted(address: Address) -> bool:
    return is_within(address, _trusted_proxies(tuple(settings.TRUSTED_PROXIES)))


@lru_cache(maxsize=8)
def _trusted_proxies(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def _parsed(text: str | None) -> Address | None:
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
