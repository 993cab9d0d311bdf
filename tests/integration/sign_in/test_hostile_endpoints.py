"""A provider whose pages are away, slow, elsewhere or wrong, and browsers that come back with what
is not theirs."""

import time
from typing import Any

import pytest
from django.test import Client

from apps.rbac.models import User
from apps.sign_in import provider as oidc
from tests.integration.sign_in.hostile_provider import HostileProvider, jwk, key_pair
from tests.integration.sign_in.hostile_ways import NOT_HELD, assert_refused

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engineers")]


class TestTheWayBack:
    @pytest.mark.parametrize("state", ["another", "", None, "x" * 5000])
    def test_state(self, hostile: HostileProvider, client: Client, state: str | None) -> None:
        hostile.says()
        hostile.begin(client)
        query = {} if state is None else {"state": state}
        assert_refused(client, hostile.come_back(client, **query), "not begun in this browser")
        assert not [path for path, _ in hostile.asked if path == "/token"]

    def test_a_state_of_another_browser(self, hostile: HostileProvider, client: Client) -> None:
        """Nobody is signed in as whom somebody else wants them to be."""
        hostile.says()
        state = hostile.begin(Client())["state"]
        assert_refused(client, hostile.come_back(client, state=state), "not begun in this browser")

    def test_a_state_is_good_once_and_for_ten_minutes(
        self, hostile: HostileProvider, client: Client
    ) -> None:
        hostile.answer = lambda _: (400, {"error": "invalid_grant"})
        state = hostile.begin(client)["state"]
        assert_refused(client, hostile.come_back(client, state=state), "did not let you in")
        hostile.says()
        assert_refused(client, hostile.come_back(client, state=state), "not begun in this browser")
        state = hostile.begin(client)["state"]
        session = client.session
        session[f"_state_single_sign_on_{state}"]["exp"] -= 601
        session.save()
        assert_refused(client, hostile.come_back(client, state=state), "not begun in this browser")

    def test_without_a_code(self, hostile: HostileProvider, client: Client) -> None:
        hostile.says()
        state = hostile.begin(client)["state"]
        answer = client.get("/admin/login/sso/callback/", {"state": state})
        assert_refused(client, answer, "did not let you in")
        assert not [path for path, _ in hostile.asked if path == "/token"]

    def test_of_another_issuer(self, hostile: HostileProvider, client: Client) -> None:
        """RFC 9207: the browser comes from a provider that it was not sent to."""
        hostile.says()
        state = hostile.begin(client)["state"]
        answer = hostile.come_back(client, state=state, iss="https://evil.test")
        assert_refused(client, answer, "did not let you in")
        assert not [path for path, _ in hostile.asked if path == "/token"]

    def test_a_post_is_none(self, hostile: HostileProvider, client: Client) -> None:
        state = hostile.begin(client)["state"]
        answer = client.post("/admin/login/sso/callback/", {"state": state, "code": "x"})
        assert answer.status_code == 405


class TestTheProviderItself:
    AWAY = "The single sign-on provider cannot be reached at the moment."

    def test_away(self, switched_on: Any, client: Client) -> None:
        switched_on("http://127.0.0.1:9")
        assert_refused(client, client.get("/admin/login/sso/"), self.AWAY, status=503)
        assert client.get("/admin/login/").status_code == 200  # passwords go on

    @pytest.mark.parametrize("status", [500, 503])
    def test_away_on_the_way_back(
        self, hostile: HostileProvider, client: Client, status: int
    ) -> None:
        hostile.answer = lambda _: (status, {})
        assert_refused(client, hostile.sign_in(client), self.AWAY, status=503)

    def test_slow(self, hostile: HostileProvider, client: Client, settings: Any) -> None:
        settings.OIDC_TIMEOUT_S = 1
        hostile.answer = lambda _: (200, {"after": hostile.is_over.wait(120)})
        began = time.monotonic()
        assert_refused(client, hostile.sign_in(client), self.AWAY, status=503)
        assert time.monotonic() - began < 30

    @pytest.mark.parametrize(
        "said_there",
        [
            {"issuer": "https://evil.test"},
            {"issuer": None},
            {"token_endpoint": "http://192.0.2.1/token"},
            {"jwks_uri": "file:///etc/passwd"},
            {"authorization_endpoint": "javascript:alert(1)"},
            {"authorization_endpoint": 7},
            {"id_token_signing_alg_values_supported": ["HS256", "none"]},
            {"id_token_signing_alg_values_supported": [["RS256"]]},
        ],
        ids=str,
    )
    def test_its_own_description(
        self, hostile: HostileProvider, client: Client, said_there: dict[str, Any]
    ) -> None:
        hostile.discovery = said_there
        assert_refused(client, client.get("/admin/login/sso/"), self.AWAY, status=503)

    def test_of_its_description_nothing_becomes_a_setting(self, hostile: HostileProvider) -> None:
        hostile.discovery = {
            "verify": False, "proxies": {"http": "http://evil.test"}, "scope": "all",
            "jwks": {"keys": []}, "client_id": "x", "leeway": 10**9,
        }  # fmt: skip
        hostile.says()
        client = Client()
        assert hostile.begin(client)["scope"] == "openid profile email"
        known = oidc._client().server_metadata
        assert set(known) - {"_loaded_at"} == {
            "issuer", "authorization_endpoint", "token_endpoint", "jwks_uri",
            "id_token_signing_alg_values_supported",
        }  # fmt: skip
        assert known["id_token_signing_alg_values_supported"] == ["RS256"]

    @pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
    def test_redirects_are_not_followed(
        self, hostile: HostileProvider, client: Client, path: str
    ) -> None:
        hostile.says()
        hostile.redirect = {path: f"{hostile.issuer}/elsewhere"}
        if path.startswith("/."):
            answer = client.get("/admin/login/sso/")
        else:
            answer = hostile.sign_in(client)
        assert_refused(client, answer, self.AWAY, status=503)
        assert not [each for each, _ in hostile.asked if each == "/elsewhere"]

    def test_a_new_key_is_fetched_when_it_is_met(self, hostile: HostileProvider) -> None:
        hostile.says()
        assert hostile.sign_in(Client()).status_code == 302
        hostile.key, hostile.kid = key_pair(), "two"
        hostile.keys = [jwk(hostile.key, "two")]
        assert hostile.sign_in(Client()).status_code == 302
        assert [path for path, _ in hostile.asked].count("/keys") == 2

    @pytest.mark.parametrize("keys", [[], [{}], [{"kty": "oct", "k": "AAAA", "kid": "one"}], [7]])
    def test_keys(self, hostile: HostileProvider, client: Client, keys: Any) -> None:
        hostile.says()
        hostile.keys = keys
        assert_refused(client, hostile.sign_in(client), NOT_HELD)


class TestUserinfo:
    def test_tells_what_the_token_lacks(self, hostile: HostileProvider) -> None:
        hostile.userinfo = {"sub": "subject-1", "groups": ["engineers"], "preferred_username": "x"}
        hostile.says(groups=None)
        assert hostile.sign_in(Client()).status_code == 302
        assert User.objects.get().username == "ann"

    @pytest.mark.parametrize("sub", ["subject-2", None, 7])
    def test_of_another_subject(self, hostile: HostileProvider, client: Client, sub: Any) -> None:
        hostile.userinfo = {"sub": sub, "groups": ["engineers"]}
        hostile.says(groups=None)
        assert_refused(client, hostile.sign_in(client), NOT_HELD)

    def test_verifies_no_address_but_its_own(
        self, hostile: HostileProvider, client: Client, settings: Any
    ) -> None:
        settings.OIDC_ALLOWED_DOMAINS = ["example.com"]
        hostile.userinfo = {
            "sub": "subject-1", "groups": [], "email": "x@y.test", "email_verified": True,
        }  # fmt: skip
        hostile.says(groups=None, email_verified=None)
        assert hostile.sign_in(client).status_code == 403
        assert User.objects.count() == 0
