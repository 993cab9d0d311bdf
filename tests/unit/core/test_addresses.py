from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from apps.core.addresses import client_address, is_within


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        # Whoever connects by themselves may say what they like.
        ("192.0.2.1", "10.0.0.9", "192.0.2.1"),
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        # A client's own words stand left of what the proxy adds.
        ("10.0.0.1", "192.0.2.66, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7, 10.0.0.2", "203.0.113.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "nonsense", None),
        ("10.0.0.1", "203.0.113.7, nonsense", None),
        (None, "203.0.113.7", None),
        ("", None, None),
    ],
)
def test_where_a_request_comes_from(
    settings: Any, peer: str | None, forwarded_for: str | None, address: str | None
) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    assert client_address(peer, forwarded_for) == (address and ip_address(address))


def test_without_proxies_no_header_is_believed(settings: Any) -> None:
    settings.TRUSTED_PROXIES = []
    assert client_address("10.0.0.1", "203.0.113.7") == ip_address("10.0.0.1")


def test_within() -> None:
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert is_within(ip_address("192.0.2.9"), networks)
    assert is_within(ip_address("2001:db8::9"), networks)
    assert not is_within(ip_address("192.0.3.9"), networks)
