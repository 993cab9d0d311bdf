"""Requests with an ``Idempotency-Key``, for tests."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
from django.db import OperationalError

from apps.core.hop import database_hop
from apps.gateway.idempotency import Claim, NamedRequest, request_claim
from apps.gateway.models import IdempotentRequest
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from config.asgi import application
from tests.integration.gateway.conftest import chat
from tests.rows import all_of

CHAT = "/v1/chat/completions"
KEY = {"Idempotency-Key": "order-7"}


async def n_charged() -> int:
    return await database_hop(all_of(UsageRecord).count)


async def rows() -> list[IdempotentRequest]:
    return await database_hop(lambda: list(all_of(IdempotentRequest).order_by("id")))


async def changed(**values: Any) -> None:
    await database_hop(lambda: all_of(IdempotentRequest).update(**values))


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def is_replayed(response: httpx.Response) -> bool:
    assert response.headers.get("idempotency-replayed", "true") == "true"
    return "idempotency-replayed" in response.headers


def as_sent_again(first: httpx.Response, again: httpx.Response) -> None:
    assert (first.status_code, is_replayed(first)) == (200, False)
    assert (again.status_code, is_replayed(again)) == (200, True)
    assert again.content == first.content
    for name in ("content-type", "x-request-id", "request-id", "cache-control"):
        assert again.headers.get(name) == first.headers.get(name)


def failing(*_: object, **__: object) -> None:
    raise OperationalError("the database is away")


async def as_elsewhere(http: httpx.AsyncClient, token: ApiToken) -> tuple[NamedRequest, Claim]:
    """Have another process run what ``chat()`` asks for: the row that this one wrote is its."""
    await http.post(CHAT, json=chat(), headers=KEY)
    (row,) = await rows()
    named = NamedRequest(
        tenant_id=token.tenant_id,
        api_token_id=token.pk,
        user_id=0,
        key=row.key,
        fingerprint=row.fingerprint,
    )
    await database_hop(all_of(IdempotentRequest).all().delete)
    claim = await database_hop(request_claim, named)
    assert isinstance(claim, Claim)
    return named, claim


class Leaver:
    """A client of the ASGI application that leaves once ``is_enough``."""

    def __init__(
        self, body: dict[str, Any], token: ApiToken, *, path: str = CHAT, key: str = "order-7"
    ) -> None:
        self._queue: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._queue.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"idempotency-key", key.encode()),
                (b"authorization", f"Bearer {token.secret}".encode()),  # type: ignore[attr-defined]
            ],
        }
        self.n_parts = 0

    async def ask(self) -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            self.n_parts += message["type"] == "http.response.body"
            await asyncio.sleep(0)

        await application(self._scope, self._queue.get, send)

    def leave(self) -> None:
        self._queue.put_nowait({"type": "http.disconnect"})
