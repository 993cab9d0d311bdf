"""JWTs: what they must be to be taken, and how they are refreshed."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.core.exceptions import AuthenticationFailed, PermissionDenied
from apps.rbac.jwt_tokens import grant_of_jwt
from apps.rbac.models import ApiToken, JwtKey, TokenFamily
from apps.rbac.selectors import principal_of_secret
from apps.rbac.services import token_family_revoke, token_pair_refresh
from apps.rbac.types import TokenPair
from tests.integration.rbac.jwts import b64, issue, refused, said, signer, state, token
from tests.rows import all_of

__all__ = ["token"]

pytestmark = pytest.mark.django_db


# -- what is refused ------------------------------------------------------------------------------


def forged(pair: TokenPair, **changes: Any) -> str:
    """Signed with our own key, but saying something else."""
    kid, key = signer()
    claims = {**said(pair.access_token), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, "EdDSA", headers={"kid": kid, "typ": "at+jwt"})


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "others"},
        {"aud": ["others"]},
        {"iss": "others"},
        {"nbf": 4_000_000_000},
        {"nbf": "soon"},
        {"exp": "late"},
        {"family": "family-none"},
        {"family": 7},
        *({name: None} for name in ("iss", "aud", "sub", "exp", "nbf", "iat", "jti", "family")),
    ],
)
def test_claims_that_do_not_hold(token: ApiToken, changes: dict[str, Any]) -> None:
    pair = issue(token)
    assert grant_of_jwt(forged(pair)).principal.api_token_id == token.pk
    refused("invalid_token", lambda: grant_of_jwt(forged(pair, **changes)))


def test_an_expired_token(token: ApiToken) -> None:
    pair = issue(token)
    past_s = int(timezone.now().timestamp()) - 1
    refused("token_expired", lambda: grant_of_jwt(forged(pair, exp=past_s)))


def test_other_algorithms_and_keys(token: ApiToken) -> None:
    pair = issue(token)
    kid, key = signer()
    claims, public = said(pair.access_token), JwtKey.objects.get().public_x
    head, body, signature = pair.access_token.split(".")
    header = {"kid": kid, "typ": "at+jwt"}
    public_raw = base64.urlsafe_b64decode(public + "=")
    others = {
        "none": f"{b64({**header, 'alg': 'none'})}.{body}.",
        "none with our signature": f"{b64({**header, 'alg': 'none'})}.{body}.{signature}",
        "the public key as a secret": jwt.encode(claims, public_raw, "HS256", headers=header),
        "another key": jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers=header),
        "unknown kid": jwt.encode(claims, key, "EdDSA", headers={**header, "kid": "x"}),
        "no kid": jwt.encode(claims, key, "EdDSA", headers={"typ": "at+jwt"}),
        "kid of another kind": jwt.encode(claims, key, "EdDSA", headers={**header, "typ": "JWT"}),
        "a refresh token": pair.refresh_token,
        "no signature": f"{head}.{body}.",
        "too long": f"{head}.{body}.{'x' * 2048}",
        "no JSON": "eyJ.eyJ.eyJ",
    }
    for name, text in others.items():
        assert name and text != pair.access_token
        refused("invalid_token", lambda text=text: grant_of_jwt(text))  # type: ignore[misc]


def test_no_character_can_be_changed(token: ApiToken) -> None:
    """The last ones of a part too, whose spare bits a lenient reader would not look at."""
    text = issue(token).access_token
    places = {0, 5, len(text) // 2, len(text) - 1, text.index(".") - 1, text.rindex(".") - 1}
    for place in sorted(places):
        for other in "AQgwBz-_":
            if text[place] != other:
                changed = text[:place] + other + text[place + 1 :]
                with pytest.raises(AuthenticationFailed) as error:
                    grant_of_jwt(changed)
                assert error.value.code == "invalid_token"
    refused("invalid_token", lambda: grant_of_jwt(text + "="))


def test_an_access_token_refreshes_nothing(token: ApiToken) -> None:
    pair = issue(token)
    refused("invalid_token", lambda: token_pair_refresh(refresh_token=pair.access_token))
    refused("invalid_token", lambda: token_family_revoke(token=pair.access_token[:-8]))


# -- refreshing and its abuse ---------------------------------------------------------------------


def test_refreshing_prolongs_nothing(token: ApiToken) -> None:
    first = issue(token, scopes=["inference"])
    second = token_pair_refresh(refresh_token=first.refresh_token)
    assert second.scopes == ("inference",)
    assert said(second.refresh_token)["exp"] == said(first.refresh_token)["exp"]
    assert grant_of_jwt(second.access_token).principal.family_id == all_of(TokenFamily).get().pk
    assert [event.action for event in all_of(AuditEvent).order_by("pk")] == [
        "jwt.issued", "jwt.refreshed",
    ]  # fmt: skip


def test_a_used_refresh_token_ends_its_family_alone(token: ApiToken) -> None:
    first, other = issue(token), issue(token)
    second = token_pair_refresh(refresh_token=first.refresh_token)
    with pytest.raises(AuthenticationFailed) as error:
        token_pair_refresh(refresh_token=first.refresh_token)
    assert error.value.code == "token_reused"
    assert all_of(AuditEvent).order_by("-pk")[0].action == "jwt.reused"
    for dead in (first, second):
        refused("token_revoked", lambda dead=dead: grant_of_jwt(dead.access_token))  # type: ignore[misc]
        refused(
            "token_revoked",
            lambda dead=dead: token_pair_refresh(refresh_token=dead.refresh_token),  # type: ignore[misc]
        )
    assert grant_of_jwt(other.access_token).principal.api_token_id == token.pk
    assert principal_of_secret(token.secret).api_token_id == token.pk  # type: ignore[attr-defined]


@pytest.mark.django_db(transaction=True)
def test_of_two_refreshes_at_once_one_wins_and_the_other_is_reuse(token: ApiToken) -> None:
    pair = issue(token)
    together = threading.Barrier(2)

    def refresh() -> str:
        try:
            together.wait(timeout=5)
            token_pair_refresh(refresh_token=pair.refresh_token)
        except AuthenticationFailed as error:
            return error.code
        finally:
            connection.close()
        return "refreshed"

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(each.result(timeout=20) for each in [pool.submit(refresh) for _ in "ab"])
    assert outcomes == ["refreshed", "token_reused"]
    assert all_of(TokenFamily).get().revoked_at is not None


@pytest.mark.django_db(transaction=True)
def test_the_first_key_is_made_once(token: ApiToken) -> None:
    together = threading.Barrier(2)

    def exchange() -> str:
        try:
            together.wait(timeout=5)
            return issue(token).access_token
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        texts = [each.result(timeout=20) for each in [pool.submit(exchange) for _ in "ab"]]
    assert JwtKey.objects.count() == 1
    assert {grant_of_jwt(text).principal.api_token_id for text in texts} == {token.pk}


def test_networks_hold_for_a_refresh(token: ApiToken) -> None:
    pair = issue(token)
    all_of(ApiToken).update(allowed_networks="192.0.2.0/24")
    before = state()
    for address in (ip_address("198.51.100.1"), None):
        with pytest.raises(PermissionDenied) as error:
            token_pair_refresh(refresh_token=pair.refresh_token, address=address)
        assert error.value.code == "network_not_allowed"
    assert state() == before
    token_pair_refresh(refresh_token=pair.refresh_token, address=ip_address("192.0.2.9"))
    assert all_of(AuditEvent).order_by("-pk")[0].ip_address == "192.0.2.9"
