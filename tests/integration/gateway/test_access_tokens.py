"""JWTs at the doors: exchanged, used wherever an API token is, and gone once they are revoked."""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import UsageRecord
from apps.rbac import authentication
from apps.rbac.models import ApiToken, TokenFamily
from apps.rbac.services import api_token_revoke, jwt_key_rotate, token_family_revoke
from apps.rbac.services import jwt as services
from apps.tenants.services import tenant_update
from tests.factories import ApiTokenFactory
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.streams import closed_with, opened, receive, send, until
from tests.integration.gateway.test_revocation import LONG, Streamed
from tests.processes import ServerRun
from tests.rows import all_of

TOKEN = "/v1/auth/token"


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def exchanged(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post(TOKEN, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_the_life_of_a_family(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    answer = await http.post(TOKEN, json={})
    assert answer.headers["cache-control"] == "no-store"
    first = answer.json()
    assert set(first) == {
        "access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "scopes",
    }  # fmt: skip
    assert (first["token_type"], first["scopes"]) == ("Bearer", ["inference", "batches"])
    assert 895 < first["expires_in"] <= 900 and 86_395 < first["refresh_expires_in"] <= 86_400

    refreshed = await http.post(
        f"{TOKEN}/refresh", json={"refresh_token": first["refresh_token"]}, headers=bearer("none")
    )
    assert (refreshed.status_code, refreshed.headers["cache-control"]) == (200, "no-store")
    second = refreshed.json()
    for each in (first, second):
        used = await http.get("/v1/models", headers=bearer(each["access_token"]))
        assert used.status_code == 200

    revoked = await http.post(f"{TOKEN}/revoke", json={"token": second["access_token"]})
    assert (revoked.status_code, revoked.json()) == (200, {"revoked": True})
    await runtime._watcher.poll()
    for each in (first, second):
        used = await http.get("/v1/models", headers=bearer(each["access_token"]))
        assert (used.status_code, used.json()["error"]["code"]) == (401, "token_revoked")
        assert used.headers["www-authenticate"] == "Bearer"
    assert (await http.get("/v1/models")).status_code == 200  # the API token is as it was


async def test_every_door_takes_it_within_its_scopes(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    pair = await exchanged(http, scopes=["inference"])
    headers = bearer(pair["access_token"])
    answer = await http.post("/v1/chat/completions", json=chat(), headers=headers)
    assert answer.status_code == 200
    row = await database_hop(all_of(UsageRecord).get)
    assert (row.api_token_id, row.tenant_id) == (token.pk, token.tenant_id)
    for path in ("/v1/files", "/v1/batches"):
        refusal = await http.get(path, headers=headers)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (403, "insufficient_scope")
    again = await http.post(TOKEN, json={}, headers=headers)
    assert (again.status_code, again.json()["error"]["code"]) == (403, "api_key_required")
    assert await database_hop(all_of(TokenFamily).count) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (TOKEN, {"scopes": ["admin"]}, 400, "scopes"),
        (TOKEN, {"scopes": []}, 400, "scopes"),
        (TOKEN, {"scope": "inference"}, 400, "scope"),
        (f"{TOKEN}/refresh", {}, 400, "refresh_token"),
        (f"{TOKEN}/refresh", {"refresh_token": "a.b.c"}, 401, None),
        (f"{TOKEN}/refresh", {"refresh_token": "é.ü.ö"}, 401, None),
        (f"{TOKEN}/revoke", {"token": "sk-nano-" + "x" * 43}, 401, None),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert await database_hop(all_of(TokenFamily).count) == 0


async def test_what_may_be_asked_in_a_minute_is_bounded(
    http: httpx.AsyncClient, token: ApiToken, settings: Any
) -> None:
    """Each exchange and each refresh is a row and an audit event."""
    settings.AUTH_REQUESTS_PER_MINUTE = 2
    pair = await exchanged(http)
    pair = (await http.post(f"{TOKEN}/refresh", json=refresh(pair))).json()
    cases: list[tuple[str, dict[str, Any], str]] = [
        (TOKEN, {}, "This API key may make 2 requests a minute."),
        (f"{TOKEN}/refresh", refresh(pair), "This address may make 2 requests a minute."),
    ]
    for path, body, message in cases:
        allowed = await http.post(path, json=body)
        assert allowed.status_code == 200
        before = await database_hop(written)
        refused = await http.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["message"]) == (429, message)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert await database_hop(written) == before
    revoked = await http.post(f"{TOKEN}/revoke", json={"token": pair["access_token"]})
    assert revoked.status_code == 200  # counted by itself
    other = await database_hop(ApiTokenFactory)
    assert (await http.post(TOKEN, json={}, headers=bearer(other.secret))).status_code == 200


def refresh(pair: dict[str, Any]) -> dict[str, Any]:
    return {"refresh_token": pair["refresh_token"]}


def written() -> tuple[list[Any], int]:
    return list(all_of(TokenFamily).order_by("pk").values()), all_of(AuditEvent).count()


async def test_the_networks_of_the_api_token_hold(
    http: httpx.AsyncClient, token: ApiToken, runtime: GatewayRuntime
) -> None:
    pair = await exchanged(http)
    await database_hop(lambda: all_of(ApiToken).update(allowed_networks="192.0.2.0/24"))
    runtime.tokens.forget()
    used = await http.get("/v1/models", headers=bearer(pair["access_token"]))
    assert (used.status_code, used.json()["error"]["code"]) == (403, "network_not_allowed")
    refused = await http.post(f"{TOKEN}/refresh", json={"refresh_token": pair["refresh_token"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "network_not_allowed")


async def test_a_second_use_asks_the_database_nothing_until_the_token_expires(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "ACCESS_LIFE", timedelta(seconds=8))
    pair, asked, now_s = await exchanged(http), [], 1000.0
    real = authentication.grant_of_jwt

    def counting(text: str) -> Any:
        asked.append(text)
        return real(text)

    monkeypatch.setattr(authentication, "grant_of_jwt", counting)
    cache = authentication.TokenCache(clock=lambda: now_s)
    first = await cache.authenticate(pair["access_token"])
    assert await cache.authenticate(pair["access_token"]) == first
    assert len(asked) == 1
    now_s += 8.1  # without the bound it would be remembered for ten seconds
    await cache.authenticate(pair["access_token"])
    assert len(asked) == 2


async def test_the_public_keys(http: httpx.AsyncClient, runtime: GatewayRuntime) -> None:
    await exchanged(http)
    async with httpx.AsyncClient(transport=http._transport, base_url=http.base_url) as nobody:
        first = (await nobody.get("/v1/auth/jwks.json")).json()["keys"]
        await database_hop(jwt_key_rotate, actor=SYSTEM)
        await runtime._watcher.poll()
        second = (await nobody.get("/v1/auth/jwks.json")).json()["keys"]
    assert (len(first), len(second), second[1:]) == (1, 2, first)


# -- over the real server ------------------------------------------------------------------------


async def revoke_family(_: ApiToken, pair: dict[str, Any]) -> None:
    await database_hop(token_family_revoke, token=pair["refresh_token"])


async def revoke_api_token(token: ApiToken, _: dict[str, Any]) -> None:
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)


async def switch_off(token: ApiToken, _: dict[str, Any]) -> None:
    token.tenant.is_active = False
    await database_hop(tenant_update, tenant=token.tenant, actor=SYSTEM)


class Shown:
    """What the tools of other tests send: a token's secret."""

    def __init__(self, secret: str) -> None:
        self.secret = secret


@pytest.mark.parametrize("withdraw", [revoke_family, revoke_api_token, switch_off])
async def test_what_runs_ends_within_a_second(
    server: ServerRun,
    token: ApiToken,
    withdraw: Callable[[ApiToken, dict[str, Any]], Awaitable[None]],
) -> None:
    async with httpx.AsyncClient(
        base_url=server.base_url,
        headers=bearer(token.secret),  # type: ignore[attr-defined]
    ) as http:
        pair = await exchanged(http)
    shown: Any = Shown(pair["access_token"])
    stream = Streamed(server, shown, **LONG)
    async with opened(server, shown) as socket:
        await send(socket, type="start", id="a", **{**chat(), **LONG})
        await until(socket, lambda frame: frame["type"] == "delta")
        await stream.begun.wait()
        await withdraw(token, pair)
        withdrawn_s = time.monotonic()
        told = await until(socket, lambda frame: frame["type"] == "error" and not frame.get("id"))
        assert await closed_with(socket) == 4401
        await stream.task
        assert time.monotonic() - withdrawn_s < 1
    assert told[-1]["error"]["code"] == "access_revoked"
    assert '"access_revoked"' in stream.events[-2]
    rows = await database_hop(
        lambda: list(all_of(UsageRecord).values_list("api_token_id", "error_code"))
    )
    assert rows == [(token.pk, "access_revoked")] * 2


async def test_a_connection_shows_it_in_its_first_frame(server: ServerRun, token: ApiToken) -> None:
    async with httpx.AsyncClient(
        base_url=server.base_url,
        headers=bearer(token.secret),  # type: ignore[attr-defined]
    ) as http:
        pair = await exchanged(http)
    async with opened(server, None) as socket:
        await send(socket, type="auth", token=pair["access_token"])
        assert (await receive(socket))["type"] == "ready"
