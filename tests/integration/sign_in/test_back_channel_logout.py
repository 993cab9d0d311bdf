"""The provider says behind the browser's back that somebody signed out."""

from typing import Any

import jwt
import pytest
from django.test import Client

from apps.audit.models import AuditEvent
from tests.integration.console.pages import actions
from tests.integration.sign_in.hostile_provider import HostileProvider, key_pair
from tests.integration.sign_in.hostile_ways import EVENT, LOGOUT, is_in, unsigned
from tests.rows import all_of

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engineers")]


class TestBackChannelLogout:
    def token(self, provider: HostileProvider, **changes: Any) -> str:
        claims = {
            **provider.honest(nonce=None), "jti": "1", "events": {EVENT: {}}, **changes,
        }  # fmt: skip
        return provider.signed({name: each for name, each in claims.items() if each is not None})

    def signed_in(self, hostile: HostileProvider) -> Client:
        hostile.says()
        client = Client()
        assert hostile.sign_in(client).status_code == 302
        return client

    def test_ends_the_sessions_of_that_person(self, hostile: HostileProvider) -> None:
        client = self.signed_in(hostile)
        sent = Client(enforce_csrf_checks=True).post(LOGOUT, {"logout_token": self.token(hostile)})
        assert (sent.status_code, sent["Cache-Control"].count("no-store")) == (200, 1)
        assert not is_in(client)
        assert actions()[-1] == "sign_in.provider_signed_out"

    def test_of_somebody_unknown_changes_nothing(self, hostile: HostileProvider) -> None:
        client = self.signed_in(hostile)
        sent = Client().post(LOGOUT, {"logout_token": self.token(hostile, sub="subject-9")})
        assert sent.status_code == 200
        assert is_in(client)

    @pytest.mark.parametrize(
        "changes",
        [
            {"nonce": "n"}, {"events": None}, {"events": {}}, {"events": EVENT}, {"sub": None},
            {"aud": "another"}, {"iss": "https://evil.test"}, {"exp": 1}, {"iat": None},
            {"jti": None},
        ],
        ids=str,
    )  # fmt: skip
    def test_refused(self, hostile: HostileProvider, changes: dict[str, Any]) -> None:
        client = self.signed_in(hostile)
        n_events = all_of(AuditEvent).count()
        sent = Client().post(LOGOUT, {"logout_token": self.token(hostile, **changes)})
        assert sent.status_code == 400
        assert is_in(client)
        assert all_of(AuditEvent).count() == n_events

    def test_unsigned_or_by_another(self, hostile: HostileProvider) -> None:
        client = self.signed_in(hostile)
        claims = {**hostile.honest(nonce=None), "jti": "1", "events": {EVENT: {}}}
        for token in (
            unsigned(claims), jwt.encode(claims, key_pair(), "RS256", headers={"kid": "one"}),
            jwt.encode(claims, key_pair(), "RS256", headers={"kid": "new"}), "", "x" * 100_000,
        ):  # fmt: skip
            assert Client().post(LOGOUT, {"logout_token": token}).status_code == 400
        assert is_in(client)
        assert [path for path, _ in hostile.asked].count("/keys") == 1  # nobody makes us ask anew

    def test_an_id_token_is_none(self, hostile: HostileProvider) -> None:
        client = self.signed_in(hostile)
        token = hostile.signed(hostile.honest())
        assert Client().post(LOGOUT, {"logout_token": token}).status_code == 400
        assert is_in(client)
