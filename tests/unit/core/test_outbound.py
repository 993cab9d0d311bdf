"""The guard against URLs that lead back into the house."""

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from apps.core.outbound import AddressRefused, UnsafeUrl, guarded_socket, refusal, url_check

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]
METADATA = [
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16",
    "fd00:ec2::254", "fd20:ce::254",
    # the same by the ways of carrying IPv4 in IPv6
    "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1",
]  # fmt: skip
HOUSE = [
    "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.1",
    "192.168.1.1", "100.64.0.1", "100.127.255.254", "169.254.0.1", "192.0.0.1", "192.0.2.1",
    "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "64:ff9b::8.8.8.8", "100::1", "2001::1",
    "2001:0:7f00:1::", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
    "3fff::1", "5f00::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1", "4000::1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_allowed(settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = []


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_for_tls(text: str) -> None:
    assert refusal(ip_address(text), is_plain=False) is None
    assert "http://" in (refusal(ip_address(text), is_plain=True) or "")


@pytest.mark.parametrize("text", HOUSE)
def test_the_house_is_refused(text: str) -> None:
    assert "not a public address" in (refusal(ip_address(text), is_plain=False) or "")


@pytest.mark.parametrize("text", METADATA)
def test_metadata_is_refused_whatever_is_allowed(text: str, settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["0.0.0.0/0", "::/0"]
    assert "never" in (refusal(ip_address(text), is_plain=False) or "")


def test_what_is_listed_is_allowed_and_no_more(settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["10.1.0.0/16", "fd12::/16"]
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert refusal(ip_address(text), is_plain=True) is None
    for text in ("10.2.0.1", "::10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::1", "fd13::1"):
        assert refusal(ip_address(text), is_plain=True) is not None


@pytest.mark.parametrize(
    "url",
    [
        "", "models.example.com/v1", "//models.example.com", "ftp://models.example.com",
        "file:///etc/passwd", "gopher://models.example.com", "unix:/run/engine.sock",
        "javascript:alert(1)", "https://", "https:///v1", "https://:443/v1", "https://.", "https://..",
        "https://a b.example.com", "https://models.example.com/ v1", "https://a.example.com\\@b",
        "https://models.example.com\r\nHost: b", "https://models.example.com/\x00",
        "https://me@models.example.com", "https://me:pw@models.example.com",
        "https://models.example.com@10.0.0.1", "https://models.example.com#@10.0.0.1/",
        "https://models.example.com/?a=b", "https://models.example.com/v1#x",
        "https://models.example.com/../admin", "https://models.example.com/%2e%2e/admin",
        "https://models.example.com:99999/", "https://models.example.com:x/",
        "https://[::1", "https://[::1%25eth0]/", "https://[v1.x]/", "https://müsli.example",
        "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/",
        "https://0x7f.0.0.1/", "https://127.0.0.1./", "https://1.1.1.1.1/", "https://example.0x7f/",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::]/",
        "https://localhost/", "https://LOCALHOST./", "https://a.localhost/", "https://0.0.0.0/",
        "https://10.0.0.1/", "https://169.254.169.254/latest/meta-data/", "https://[fe80::1]/",
        "http://8.8.8.8/v1", "https://" + "a" * 500, "https://-a.example/", "https://a_.*/",
    ],
)  # fmt: skip
def test_hostile_urls_are_refused(url: str) -> None:
    with pytest.raises(UnsafeUrl):
        url_check(url)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://models.example.com/v1", ("https", "models.example.com", 443)),
        ("https://Models.Example.com:8443", ("https", "models.example.com", 8443)),
        ("http://models.example.com/v1/", ("http", "models.example.com", 80)),
        ("https://8.8.8.8/v1", ("https", "8.8.8.8", 443)),
        ("https://[2606:4700:4700::1111]:444/v1", ("https", "2606:4700:4700::1111", 444)),
        ("https://vllm_1/v1", ("https", "vllm_1", 443)),
        ("https://127.example.com/", ("https", "127.example.com", 443)),
    ],
)
def test_others_are_taken(url: str, origin: tuple[str, str, int]) -> None:
    assert url_check(url).origin == origin


def test_a_socket_is_made_for_the_very_address_or_not_at_all(settings: Any) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    make = guarded_socket(is_plain=True)
    base = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    make((*base, ("127.0.0.1", 80))).close()
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        make((*base, ("10.0.0.1", 80)))
    six = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    with pytest.raises(AddressRefused, match="fe80::1"):
        make((*six, ("fe80::1%lo", 80, 0, 1)))
