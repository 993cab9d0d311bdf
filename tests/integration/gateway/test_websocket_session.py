"""/v1/stream by the session of someone who is signed in to the admin."""

import httpx
import pytest
from websockets.asyncio.client import connect

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken, User
from apps.sign_in.services.devices import two_factor_policy_set
from apps.sign_in.services.sessions import sessions_end
from tests.factories.access import MembershipFactory, UserFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.streams import closed_with, ends, receive, send, until
from tests.processes import ServerRun
from tests.rows import all_of


@pytest.fixture
def person(transactional_db: None, token: ApiToken) -> User:
    user: User = UserFactory(admin=True, username="ann")
    MembershipFactory(user=user, tenant=token.tenant)
    return user


def session_cookie(server: ServerRun) -> str:
    with httpx.Client(base_url=server.base_url) as http:
        http.get("/admin/login/")
        form = {
            "username": "ann",
            "password": "pass-word-1",
            "csrfmiddlewaretoken": http.cookies["csrftoken"],
        }
        assert http.post("/admin/login/", data=form).status_code == 302
        return http.cookies["sessionid"]


async def test_session_of_the_admin(server: ServerRun, person: User) -> None:
    headers = {"Cookie": f"sessionid={session_cookie(server)}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["type"] == "ready"
        await send(ws, type="start", id="c1", **chat())
        assert (await until(ws, ends("c1")))[-1]["type"] == "finished"
    row = await database_hop(all_of(UsageRecord).get)
    assert (row.user_id, row.api_token_id) == (person.pk, None)


async def test_session_from_another_origin(server: ServerRun, person: User) -> None:
    headers = {"Cookie": f"sessionid={session_cookie(server)}"}
    for origin in ("http://evil.example", "null", None):
        async with connect(server.ws_url, additional_headers=headers, origin=origin) as ws:
            assert (await receive(ws))["error"]["code"] == "origin_not_allowed"
            assert await closed_with(ws) == 4403


async def test_session_of_a_member_of_nothing(server: ServerRun, transactional_db: None) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    headers = {"Cookie": f"sessionid={session_cookie(server)}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["error"]["code"] == "permission_denied"
        assert await closed_with(ws) == 4403


async def test_session_that_lacks_the_second_factor(server: ServerRun, person: User) -> None:
    cookie = session_cookie(server)
    await database_hop(two_factor_policy_set, user=person, is_required=True, actor=SYSTEM)
    headers = {"Cookie": f"sessionid={cookie}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["error"]["code"] == "session_over"
        assert await closed_with(ws) == 4401
    assert await database_hop(all_of(UsageRecord).count) == 0


async def test_session_that_was_ended_elsewhere(server: ServerRun, person: User) -> None:
    headers = {"Cookie": f"sessionid={session_cookie(server)}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["type"] == "ready"
    await database_hop(sessions_end, user=person, actor=SYSTEM)
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["error"]["code"] == "session_over"
        assert await closed_with(ws) == 4401
