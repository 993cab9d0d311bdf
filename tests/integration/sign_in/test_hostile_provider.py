"""What a provider must not get away with, nor whoever stands between: each through HTTP, and each
leaves everything as it was."""

import hashlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from django.test import Client

from apps.rbac.models import RoleGrant, User
from tests.identity_provider.process import CLIENT_ID, CLIENT_SECRET
from tests.integration.console.pages import actions
from tests.integration.sign_in.hostile_provider import TOKENS, HostileProvider, jwk, key_pair
from tests.integration.sign_in.hostile_ways import (
    NOT_HELD,
    assert_refused,
    b64,
    by_public_key,
    is_in,
    unsigned,
)
from tests.integration.sign_in.people import said
from tests.rows import all_of

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engineers")]


def test_an_honest_one_is_believed(hostile: HostileProvider, client: Client) -> None:
    """Else nothing below would show anything."""
    hostile.says()
    assert hostile.sign_in(client).status_code == 302
    assert is_in(client)
    assert User.objects.get().username == "ann"


def test_what_it_is_asked(hostile: HostileProvider, client: Client) -> None:
    hostile.says()
    sent = hostile.begin(client)
    assert sent["response_type"] == "code"
    assert sent["scope"] == "openid profile email"
    assert sent["code_challenge_method"] == "S256"
    assert min(len(sent["state"]), len(sent["nonce"])) >= 20
    hostile.come_back(client, state=sent["state"])
    (form,) = [form for path, form in hostile.asked if path == "/token"]
    assert form["grant_type"] == ["authorization_code"]
    assert form["redirect_uri"] == ["http://testserver/admin/login/sso/callback/"]
    digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
    assert b64(digest) == sent["code_challenge"]
    again = hostile.begin(client)
    assert again["state"] != sent["state"]
    assert again["nonce"] != sent["nonce"]


BAD_CLAIMS: list[dict[str, Any]] = [
    {"nonce": "another"},
    {"nonce": None},
    {"nonce": ["x"]},
    {"iss": "https://evil.test"},
    {"iss": None},
    {"iss": ["x"]},
    {"aud": "another-client"},
    {"aud": None},
    {"aud": ["another-client"]},
    {"aud": []},
    {"aud": {"a": CLIENT_ID}},
    {"aud": [CLIENT_ID, "another-client"]},  # and no azp that says whose it is
    {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"},
    {"azp": "another-client"},
    {"aud": "another-client", "azp": CLIENT_ID},
    {"exp": 1_000_000_000},
    {"exp": None},
    {"exp": "soon"},
    {"exp": True},
    {"iat": 4_000_000_000},
    {"iat": None},
    {"nbf": 4_000_000_000},
    {"sub": None},
    {"sub": ""},
    {"sub": 7},
    {"sub": ["subject-1"]},
    {"sub": "x" * 256},
    {"sub": "a\x00b"},
    {"sub": "\ud800"},
    {"at_hash": "AAAA"},
    {"at_hash": 7},
    {"amr": "mfa"},
    {"preferred_username": ["ann"]},
    {"preferred_username": "ann\x00"},
    {"preferred_username": "a" * 256},
    {"email": 7},
]


@pytest.mark.parametrize("changes", BAD_CLAIMS, ids=lambda each: json.dumps(each)[:60])
def test_claims(hostile: HostileProvider, client: Client, changes: dict[str, Any]) -> None:
    hostile.says(**changes)
    assert_refused(client, hostile.sign_in(client), NOT_HELD)


TOKENS_OF: dict[str, Callable[[HostileProvider], Any]] = {
    "unsigned": lambda provider: unsigned(provider.honest()),
    "unsigned as None": lambda provider: unsigned(provider.honest(), "None"),
    "unsigned as RS256": lambda provider: unsigned(provider.honest(), "RS256"),
    "signature taken off": lambda provider: (
        provider.signed(provider.honest()).rpartition(".")[0] + "."
    ),
    "by the public key": by_public_key,
    "by the client secret": lambda provider: jwt.encode(
        provider.honest(), CLIENT_SECRET.ljust(32, "x"), "HS256", headers={"kid": provider.kid}
    ),
    "by another key of the same name": lambda provider: jwt.encode(
        provider.honest(), key_pair(), "RS256", headers={"kid": provider.kid}
    ),
    "by a key that is not listed": lambda provider: jwt.encode(
        provider.honest(), key_pair(), "RS256", headers={"kid": "two"}
    ),
    "by the key in its own header": lambda provider: _carrying_its_key(provider),
    "changed": lambda provider: _changed(provider),
    "no token": lambda provider: "",
    "no JSON": lambda provider: "a.b.c",
    "a number": lambda provider: 7,
    "a list": lambda provider: [],
    "null": lambda provider: None,
    "claims that are a list": lambda provider: _of_a_list(provider),
}


def _carrying_its_key(provider: HostileProvider) -> str:
    key = key_pair()
    return jwt.encode(provider.honest(), key, "RS256", headers={"jwk": jwk(key, "one")})


def _changed(provider: HostileProvider) -> str:
    head, _, tail = provider.signed(provider.honest()).split(".")
    return f"{head}.{b64(json.dumps(provider.honest(sub='root')).encode())}.{tail}"


def _of_a_list(provider: HostileProvider) -> str:
    return jwt.api_jws.encode(b"[1]", provider.key, "RS256", headers={"kid": provider.kid})


@pytest.mark.parametrize("which", TOKENS_OF)
def test_tokens(hostile: HostileProvider, client: Client, which: str) -> None:
    hostile.answers(lambda: TOKENS_OF[which](hostile))
    assert_refused(client, hostile.sign_in(client), NOT_HELD)


def test_no_id_token_at_all(hostile: HostileProvider, client: Client) -> None:
    hostile.answer = lambda _: (200, TOKENS)
    assert_refused(client, hostile.sign_in(client), NOT_HELD)


@pytest.mark.parametrize("groups", [None, "engineers", {"engineers": True}, ["engineers", 7], 1])
def test_groups(hostile: HostileProvider, client: Client, groups: Any) -> None:
    """Who is in none is said by an empty list; silence takes nothing away and gives nothing."""
    hostile.says(groups=groups)
    answer = hostile.sign_in(client)
    assert_refused(client, answer, "The provider did not say which groups you are in.")


def test_silence_about_groups_takes_nothing_away(hostile: HostileProvider) -> None:
    hostile.says()
    browser = Client()
    hostile.sign_in(browser)
    before = list(all_of(RoleGrant).values())
    hostile.says(groups=None)
    assert hostile.sign_in(Client()).status_code == 403
    assert list(all_of(RoleGrant).values()) == before
    assert is_in(browser)


@pytest.mark.parametrize(
    "groups",
    [
        ["engineers\x00", "ENGINEERS", " engineers", "engineers;--", "\ud800", "e" * 5000, ""],
        [f"group-{n}" for n in range(2000)],
    ],
)
def test_strange_groups_give_nothing(
    hostile: HostileProvider, client: Client, groups: list[str]
) -> None:
    hostile.says(groups=groups)
    assert hostile.sign_in(client).status_code == 403
    assert User.objects.count() == 0
    assert actions() == ["sign_in.refused"]


@pytest.mark.parametrize("name", ["<script>x</script>", "a b", "ann'--", "../ann", "ann\u202e"])
def test_strange_names_make_nobody(hostile: HostileProvider, client: Client, name: str) -> None:
    hostile.says(preferred_username=name)
    answer = hostile.sign_in(client)
    assert answer.status_code == 403
    assert "<script>x" not in answer.content.decode()
    assert User.objects.count() == 0


def test_a_name_that_looks_the_same_is_the_same(hostile: HostileProvider, client: Client) -> None:
    """Full-width letters, and another case."""
    User.objects.create(username="ann")
    for name in ("\uff41\uff4e\uff4e", "ANN"):
        hostile.says(preferred_username=name)
        assert "There is an account" in said(hostile.sign_in(client))
    assert User.objects.count() == 1


def test_logs_name_no_secret(
    hostile: HostileProvider, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    hostile.says(nonce="another")
    sent = hostile.begin(client)
    hostile.come_back(client, state=sent["state"])
    assert "Single sign-on: token_refused" in caplog.text
    for secret in (CLIENT_SECRET, "code-1", sent["state"], "eyJ"):
        assert secret not in caplog.text


def test_the_query_of_the_button_is_read_by_django(hostile: HostileProvider) -> None:
    client = Client()
    there = client.get("/admin/login/sso/", {"next": "/admin/account/"})["Location"]
    assert "next" not in parse_qs(urlsplit(there).query)  # it stays here, in the session
