"""Access that is withdrawn while something runs: told in-band within a second, and billed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from django.db import OperationalError
from websockets.asyncio.client import connect

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway import revocation
from apps.gateway.exceptions import AccessRevoked
from apps.gateway.revocation import AccessWatch
from apps.metering.models import Meter, UsageRecord
from apps.rbac.models import ApiToken, User
from apps.rbac.selectors import identities_in_force, principal_of_secret
from apps.rbac.services import api_token_revoke, user_password_set, user_update
from apps.rbac.types import Identity
from apps.sign_in.services.devices import two_factor_policy_set
from apps.sign_in.services.sessions import sessions_end
from apps.tenants.models import Membership
from apps.tenants.services import membership_remove, tenant_update
from tests.factories import ApiTokenFactory, MembershipFactory, TenantFactory, UserFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.streams import closed_with, ends, opened, receive, send, until
from tests.integration.gateway.test_websocket_session import session_cookie
from tests.processes import LONG_ANSWER, ServerRun
from tests.rows import all_of

LONG: dict[str, Any] = {"max_tokens": LONG_ANSWER, "ignore_eos": True}
CHAT = "/v1/chat/completions"


class Streamed:
    """One streamed answer over the real server, and when it ended."""

    def __init__(self, server: ServerRun, token: ApiToken, **fields: Any) -> None:
        self.begun = asyncio.Event()
        self.events: list[str] = []
        self.ended_s = 0.0
        self._url, self._secret = f"{server.base_url}{CHAT}", token.secret
        self._body = chat(stream=True, **fields)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        headers = {"Authorization": f"Bearer {self._secret}"}
        async with (
            httpx.AsyncClient(timeout=60, headers=headers) as http,
            http.stream("POST", self._url, json=self._body) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self.events.append(line[6:])
                    self.begun.set()
        self.ended_s = time.monotonic()


async def revoke(token: ApiToken) -> None:
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)


async def switch_off(token: ApiToken) -> None:
    token.tenant.is_active = False
    await database_hop(tenant_update, tenant=token.tenant, actor=SYSTEM)


@pytest.mark.parametrize("withdraw", [revoke, switch_off])
async def test_a_stream_ends_with_an_error_and_is_billed(
    server: ServerRun, token: ApiToken, withdraw: Callable[[ApiToken], Awaitable[None]]
) -> None:
    other = await database_hop(lambda: ApiTokenFactory(tenant=TenantFactory(tokens_per_day=10**6)))
    undisturbed = Streamed(server, other, max_tokens=400, ignore_eos=True)
    stream = Streamed(server, token, **LONG)
    async with asyncio.timeout(20):
        await stream.begun.wait()
        await undisturbed.begun.wait()
        await withdraw(token)
        withdrawn_s = time.monotonic()
        await stream.task
        assert stream.ended_s - withdrawn_s < 1
        await undisturbed.task
    *_, error, done = stream.events
    assert done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "access_revoked"
    assert 'finish_reason":"' not in "".join(stream.events)
    assert json.loads(undisturbed.events[-2])["choices"][0]["finish_reason"] == "length"

    row = await database_hop(lambda: all_of(UsageRecord).get(api_token_id=token.pk))
    assert (row.state, row.outcome, row.error_code) == ("settled", "failed", "access_revoked")
    assert 0 < row.n_completion_tokens < LONG_ANSWER
    assert row.n_charged_tokens == row.n_prompt_tokens + row.n_completion_tokens
    held = await database_hop(lambda: list(all_of(Meter).values_list("n_held", flat=True)))
    assert set(held) == {0}


async def test_a_whole_answer_is_refused(server: ServerRun, token: ApiToken) -> None:
    async with httpx.AsyncClient(timeout=20, base_url=server.base_url) as http:
        headers = {"Authorization": f"Bearer {token.secret}"}
        asked = asyncio.create_task(http.post(CHAT, json=chat(**LONG), headers=headers))
        other = await database_hop(lambda: ApiTokenFactory(tenant=token.tenant))
        stream = Streamed(server, other, max_tokens=200, ignore_eos=True)
        await stream.begun.wait()
        await revoke(token)
        answer = await asked
        await stream.task
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "access_revoked")
    assert answer.headers["x-should-retry"] == "false"
    assert stream.events[-1] == "[DONE]"
    assert "access_revoked" not in "".join(stream.events)


async def test_a_connection_ends_after_its_requests(server: ServerRun, token: ApiToken) -> None:
    async with opened(server, token) as busy, opened(server, token) as idle:
        for client_id in ("a", "b"):
            await send(busy, type="start", id=client_id, **{**chat(), **LONG})
            await until(busy, lambda frame: frame["type"] == "delta")
        await revoke(token)
        revoked_s = time.monotonic()
        told = await until(busy, lambda frame: frame["type"] == "error" and frame.get("id") is None)
        assert await closed_with(busy) == 4401
        assert time.monotonic() - revoked_s < 1
        ended = {frame["id"]: frame["error"]["code"] for frame in told if frame["type"] == "error"}
        assert ended == dict.fromkeys(("a", "b", None), "access_revoked")
        assert (await receive(idle))["error"]["code"] == "access_revoked"
        assert await closed_with(idle) == 4401


async def leave(person: User) -> None:
    memberships = all_of(Membership).filter(user=person).select_related("user")
    membership = await database_hop(memberships.get)
    await database_hop(membership_remove, membership=membership, actor=SYSTEM)


async def deactivate(person: User) -> None:
    await database_hop(UserFactory, admin=True)  # somebody must be able to administer
    person.is_active = False
    await database_hop(user_update, user=person, actor=SYSTEM)


@pytest.mark.parametrize("withdraw", [leave, deactivate])
async def test_a_person_who_leaves(
    server: ServerRun, token: ApiToken, withdraw: Callable[[User], Awaitable[None]]
) -> None:
    person: User = await database_hop(lambda: UserFactory(admin=True, username="ann"))
    await database_hop(lambda: MembershipFactory(user=person, tenant=token.tenant))
    cookie = await asyncio.to_thread(session_cookie, server)
    headers = {"Cookie": f"sessionid={cookie}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["type"] == "ready"
        await send(ws, type="start", id="a", **{**chat(), **LONG})
        await until(ws, lambda frame: frame["type"] == "delta")
        await withdraw(person)
        assert (await until(ws, ends("a")))[-1]["error"]["code"] == "access_revoked"
        assert await closed_with(ws) == 4401


async def sign_out(server: ServerRun, cookies: dict[str, str], person: User) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, cookies=cookies) as http:
        await http.get("/admin/account/")
        form = {"csrfmiddlewaretoken": http.cookies["csrftoken"]}
        assert (await http.post("/admin/logout/", data=form)).status_code in (200, 302)


async def be_signed_out(server: ServerRun, cookies: dict[str, str], person: User) -> None:
    await database_hop(sessions_end, user=person, actor=SYSTEM)


async def get_a_password(server: ServerRun, cookies: dict[str, str], person: User) -> None:
    await database_hop(user_password_set, user=person, password="another horse 9", actor=SYSTEM)


async def need_a_second_factor(server: ServerRun, cookies: dict[str, str], person: User) -> None:
    await database_hop(two_factor_policy_set, user=person, is_required=True, actor=SYSTEM)


@pytest.mark.parametrize("end", [sign_out, be_signed_out, get_a_password, need_a_second_factor])
async def test_an_answer_ends_with_its_session(
    server: ServerRun,
    token: ApiToken,
    end: Callable[[ServerRun, dict[str, str], User], Awaitable[None]],
) -> None:
    person: User = await database_hop(lambda: UserFactory(admin=True, username="ann"))
    await database_hop(lambda: MembershipFactory(user=person, tenant=token.tenant))
    cookie = await asyncio.to_thread(session_cookie, server)
    headers = {"Cookie": f"sessionid={cookie}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["type"] == "ready"
        await send(ws, type="start", id="a", **{**chat(), **LONG})
        await until(ws, lambda frame: frame["type"] == "delta")
        await end(server, {"sessionid": cookie}, person)
        ended_s = time.monotonic()
        assert (await until(ws, ends("a")))[-1]["error"]["code"] == "access_revoked"
        assert time.monotonic() - ended_s < 1
        assert await closed_with(ws) == 4401
    row = await database_hop(all_of(UsageRecord).get)
    assert (row.state, row.error_code) == ("settled", "access_revoked")
    assert row.n_charged_tokens == row.n_prompt_tokens + row.n_completion_tokens


async def test_another_session_of_the_person_goes_on(server: ServerRun, token: ApiToken) -> None:
    person: User = await database_hop(lambda: UserFactory(admin=True, username="ann"))
    await database_hop(lambda: MembershipFactory(user=person, tenant=token.tenant))
    here, there = [await asyncio.to_thread(session_cookie, server) for _ in range(2)]
    headers = {"Cookie": f"sessionid={here}"}
    async with connect(server.ws_url, additional_headers=headers, origin=server.base_url) as ws:
        assert (await receive(ws))["type"] == "ready"
        await send(ws, type="start", id="a", **chat(max_tokens=300, ignore_eos=True))
        await until(ws, lambda frame: frame["type"] == "delta")
        await sign_out(server, {"sessionid": there}, person)
        assert (await until(ws, ends("a")))[-1]["type"] == "finished"


# -- what was authenticated before, and begins after ---------------------------------------------


def spawn(work: Any) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(work)


@pytest.mark.django_db(transaction=True)
async def test_whoever_begins_under_a_later_generation_is_asked_again() -> None:
    token = await database_hop(ApiTokenFactory)
    principal = await database_hop(principal_of_secret, token.secret)
    watch = AccessWatch(spawn=spawn)
    watch.check()
    await watch.confirm(principal, since=0)
    await revoke(token)
    await watch.confirm(principal, since=1)  # nothing has changed that it knows of: no question
    watch.check()
    with pytest.raises(AccessRevoked):
        await watch.confirm(principal, since=1)


@pytest.mark.django_db(transaction=True)
async def test_a_check_goes_on_until_the_database_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = await database_hop(ApiTokenFactory)
    principal = await database_hop(principal_of_secret, token.secret)
    await revoke(token)
    n_asked = 0

    def away_at_first(identities: Any) -> Any:
        nonlocal n_asked
        n_asked += 1
        if n_asked < 3:
            raise OperationalError("gone")
        return identities_in_force(identities)

    monkeypatch.setattr(revocation, "identities_in_force", away_at_first)
    monkeypatch.setattr(revocation, "AGAIN_S", 0.01)
    told: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    class Work:
        def __init__(self) -> None:
            self.principal = principal
            self.interrupt = told.set_result

    watch = AccessWatch({Work()}, spawn=spawn)
    watch.check()
    async with asyncio.timeout(5):
        assert isinstance(await told, AccessRevoked)
    assert n_asked == 3


@pytest.mark.django_db
def test_who_is_in_force_is_asked_in_four_queries(django_assert_num_queries: Any) -> None:
    tokens = [ApiTokenFactory() for _ in range(5)]
    members = [MembershipFactory() for _ in range(3)]
    principals = [principal_of_secret(token.secret).identity for token in tokens]
    people = [Identity(row.tenant_id, None, row.user_id) for row in members]
    gone = Identity(tokens[0].tenant_id, tokens[1].pk, None)  # another tenant's token
    identities = [*principals, *people, gone]
    with django_assert_num_queries(4):
        kept = identities_in_force(identities)
    assert kept == {*principals, *people}
