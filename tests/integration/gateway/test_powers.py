"""At the doors: scopes, networks, routes that are not for everyone. What is refused starts nothing
and makes no row."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission
from websockets.asyncio.client import connect

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken, RoleGrant, User
from apps.rbac.services import api_token_update, object_permissions_change, role_grant_remove
from apps.routing.models import Route, RouteUserObjectPermission
from apps.routing.services import route_update
from tests.factories import ApiTokenFactory, MembershipFactory
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.streams import closed_with, opened, receive, send, until
from tests.processes import LONG_ANSWER, ServerRun
from tests.rows import all_of
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"
ASK = {
    CHAT: chat(),
    "/v1/completions": {"model": MODEL, "prompt": "Hi", "max_tokens": 2},
    "/v1/embeddings": {"model": MODEL, "input": "Hi"},
    "/v1/responses": {"model": MODEL, "input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {**chat(), "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": chat()["messages"]},
    "/tokenize": {"model": MODEL, "prompt": "Hi"},
    "/detokenize": {"model": MODEL, "tokens": [1]},
}


async def headers_of(**fields: Any) -> dict[str, str]:
    token = await database_hop(lambda: ApiTokenFactory(**fields))
    return {"Authorization": f"Bearer {token.secret}"}


def code_of(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    return str(error.get("code") or error["type"])


@pytest.mark.parametrize("path", ASK)
async def test_inference_needs_its_scope(path: str, http: httpx.AsyncClient) -> None:
    headers = await headers_of(scopes=["batches"])
    answer = await http.post(path, json=ASK[path], headers=headers)
    assert answer.status_code == 403
    assert code_of(answer) in ("insufficient_scope", "permission_error")
    assert "'inference'" in answer.text
    assert not await database_hop(all_of(UsageRecord).exists)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/files/x", "/v1/batches/x"])
async def test_files_and_batches_need_theirs(path: str, http: httpx.AsyncClient) -> None:
    answer = await http.get(path, headers=await headers_of(scopes=["inference"]))
    assert (answer.status_code, code_of(answer)) == (403, "insufficient_scope")


async def test_a_token_whose_owner_lost_the_role(
    http: httpx.AsyncClient, runtime: GatewayRuntime
) -> None:
    member = await database_hop(MembershipFactory)
    headers = await headers_of(tenant=member.tenant, owner=member.user)
    assert (await http.post(CHAT, json=chat(), headers=headers)).status_code == 200
    await database_hop(
        lambda: role_grant_remove(grant=all_of(RoleGrant).get(), by=None, actor=SYSTEM)
    )

    async def is_refused() -> bool:
        answer = await http.post(CHAT, json=chat(max_tokens=1), headers=headers)
        return answer.status_code == 403

    await wait_until_async("the token to be refused", is_refused, timeout_s=2)


async def test_a_stream_ends_when_the_owner_loses_the_role(server: ServerRun, route: str) -> None:
    member = await database_hop(MembershipFactory)
    token: ApiToken = await database_hop(
        lambda: ApiTokenFactory(tenant=member.tenant, owner=member.user)
    )
    async with opened(server, token) as ws:
        await send(ws, type="start", id="a", **chat(max_tokens=LONG_ANSWER, ignore_eos=True))
        await until(ws, lambda frame: frame["type"] == "delta")
        await database_hop(
            lambda: role_grant_remove(grant=all_of(RoleGrant).get(), by=None, actor=SYSTEM)
        )
        last = (await until(ws, lambda frame: frame["type"] == "error"))[-1]
        assert (last["id"], last["error"]["code"]) == ("a", "access_revoked")
        assert await closed_with(ws) == 4401


# -- networks ------------------------------------------------------------------------------------


async def test_a_token_for_another_network(
    http: httpx.AsyncClient, token: ApiToken, server: ServerRun
) -> None:
    token.allowed_networks = "192.0.2.0/24\n2001:db8::/32"
    await database_hop(api_token_update, token=token, actor=SYSTEM)
    for forged in ({}, {"X-Forwarded-For": "192.0.2.1"}):
        answer = await http.post(CHAT, json=chat(), headers=forged)
        assert (answer.status_code, code_of(answer)) == (403, "network_not_allowed")
    headers = {"Authorization": f"Bearer {token.secret}", "X-Forwarded-For": "192.0.2.1"}
    async with connect(server.ws_url, additional_headers=headers) as ws:
        assert (await receive(ws))["error"]["code"] == "network_not_allowed"
        assert await closed_with(ws) == 4403
    assert not await database_hop(all_of(UsageRecord).exists)


async def test_a_token_for_this_network(http: httpx.AsyncClient, settings: Any) -> None:
    headers = await headers_of(allowed_networks="127.0.0.1")
    assert (await http.post(CHAT, json=chat(), headers=headers)).status_code == 200
    headers = await headers_of(allowed_networks="203.0.113.0/24")
    behind = {**headers, "X-Forwarded-For": "203.0.113.9"}
    assert (await http.post(CHAT, json=chat(), headers=behind)).status_code == 403
    settings.TRUSTED_PROXIES = ["127.0.0.0/8"]
    assert (await http.post(CHAT, json=chat(), headers=behind)).status_code == 200


# -- routes that are not for everyone ------------------------------------------------------------


@pytest.fixture
async def restricted(http: httpx.AsyncClient, runtime: GatewayRuntime) -> Route:
    """The route, which is for nobody as yet."""
    await http.get("/v1/models")
    route: Route = await database_hop(Route.objects.get)
    await database_hop(route_update, route=route, actor=SYSTEM, is_restricted=True)

    def is_known() -> bool:
        target = runtime.table.snapshot.routes.get(MODEL)
        return target is not None and target.audience is not None

    await wait_until_async("the restriction to be known", is_known)
    return route


def settled(runtime: GatewayRuntime, known: Callable[[Any], bool]) -> Callable[[], bool]:
    return lambda: known(runtime.table.snapshot.routes[MODEL].audience)


@pytest.mark.parametrize("path", ASK)
async def test_a_restricted_route_looks_as_if_it_were_not_there(
    path: str, http: httpx.AsyncClient, restricted: Route
) -> None:
    refused = await http.post(path, json=ASK[path])
    missing = await http.post(path, json={**ASK[path], "model": "no/tiny"})
    assert refused.status_code == missing.status_code == 404
    assert refused.text.replace(MODEL, "no/tiny") == missing.text
    assert (await http.get("/v1/models")).json()["data"] == []
    assert (await http.get(f"/v1/models/{MODEL}")).status_code == 404
    assert not await database_hop(all_of(UsageRecord).exists)


async def test_a_restricted_route_is_there_for_its_tenants(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime, restricted: Route
) -> None:
    await database_hop(route_update, route=restricted, actor=SYSTEM, tenants=[token.tenant])
    await wait_until_async("the news", settled(runtime, lambda each: bool(each.tenant_ids)))
    assert (await http.post(CHAT, json=chat())).status_code == 200
    strangers = await headers_of()
    assert (await http.post(CHAT, json=chat(), headers=strangers)).status_code == 404


async def test_a_restricted_route_is_there_for_whoever_was_given_it(
    http: httpx.AsyncClient, runtime: GatewayRuntime, restricted: Route
) -> None:
    member = await database_hop(MembershipFactory)
    own = await headers_of(tenant=member.tenant, owner=member.user)
    tenants = await headers_of(tenant=member.tenant)

    def give() -> None:
        permission = Permission.objects.get(codename="use_route")
        grant = RouteUserObjectPermission(
            user=member.user, permission=permission, content_object=restricted
        )
        object_permissions_change(obj=restricted, added=[grant], by=None, actor=SYSTEM)

    await database_hop(give)
    await wait_until_async("the news", settled(runtime, lambda each: bool(each.user_ids)))
    assert (await http.post(CHAT, json=chat(), headers=own)).status_code == 200
    assert (await http.post(CHAT, json=chat(), headers=tenants)).status_code == 404


async def test_whoever_may_use_all_routes_may_use_this(
    http: httpx.AsyncClient, restricted: Route
) -> None:
    member = await database_hop(lambda: MembershipFactory(user__is_superuser=True))
    headers = await headers_of(tenant=member.tenant, owner=member.user)
    assert await database_hop(lambda: User.objects.get().is_superuser)
    assert (await http.post(CHAT, json=chat(), headers=headers)).status_code == 200
