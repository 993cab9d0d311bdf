"""One side of /v1/stream, for tests."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from apps.rbac.models import ApiToken
from tests.processes import ServerRun


@contextlib.asynccontextmanager
async def opened(server: ServerRun, token: ApiToken | None) -> AsyncIterator[ClientConnection]:
    headers = {} if token is None else {"Authorization": f"Bearer {token.secret}"}
    async with connect(server.ws_url, additional_headers=headers) as socket:
        if token is not None:
            assert (await receive(socket))["type"] == "ready"
        yield socket


async def receive(socket: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(await asyncio.wait_for(socket.recv(), 20)))


async def send(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


async def until(
    socket: ClientConnection, is_last: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    frames = [await receive(socket)]
    while not is_last(frames[-1]):
        frames.append(await receive(socket))
    return frames


def ends(client_id: str) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: frame.get("id") == client_id and frame["type"] in {"finished", "error"}


async def closed_with(socket: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            await asyncio.wait_for(socket.recv(), 20)
    return socket.close_code
