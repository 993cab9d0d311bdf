"""The process's connections to engines: one a replica, made on demand, dropped when lost or when
the engine behind it was started anew."""

import asyncio
from collections.abc import Iterable

from apps.deployments.types import ReplicaEndpoint
from apps.engines.client import EngineClient
from apps.engines.interface import ReplicaClient
from apps.engines.remote.client import RemoteClient

CONNECT_TIMEOUT_S = 5.0


class EnginePool:
    """For one event loop. Requests to one engine share its connection."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._clients: dict[str, tuple[ReplicaEndpoint, ReplicaClient]] = {}
        self._connecting: dict[ReplicaEndpoint, asyncio.Task[ReplicaClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._retiring: set[RemoteClient] = set()

    async def client(self, endpoint: ReplicaEndpoint) -> ReplicaClient:
        """Return a live client of the engine start, or of the server, that ``endpoint`` names.

        Whoever asks while a connection is being made gets what becomes of it, so that an engine
        that does not answer costs a crowd one time-out and not one after another.

        Raises:
            EngineDead: nobody answers there, or another start than the one expected.
        """
        found = self._clients.get(endpoint.engine_name)
        if found is not None and found[0] == endpoint and not found[1].is_closed:
            return found[1]
        connecting = self._connecting.get(endpoint)
        if connecting is None:
            connecting = asyncio.create_task(self._connect(endpoint))
            self._connecting[endpoint] = connecting
        return await asyncio.shield(connecting)

    async def _connect(self, endpoint: ReplicaEndpoint) -> ReplicaClient:
        try:
            client = await self._connected(endpoint)
        finally:
            del self._connecting[endpoint]
        if (previous := self._clients.get(endpoint.engine_name)) is not None:
            self._close(previous[1])
        self._clients[endpoint.engine_name] = (endpoint, client)
        return client

    async def _connected(self, endpoint: ReplicaEndpoint) -> ReplicaClient:
        if endpoint.remote is not None:
            remote = RemoteClient(endpoint.remote)
            await remote.connect()
            return remote
        client = EngineClient(endpoint.socket_path, name=self._name, expected_epoch=endpoint.epoch)
        await client.connect(timeout_s=CONNECT_TIMEOUT_S)
        return client

    def retain(self, endpoints: Iterable[ReplicaEndpoint]) -> None:
        """Close the connections to engine starts that are gone. An engine that only stopped being
        ready keeps its connection until it closes it, so that running requests can end."""
        epochs = {endpoint.engine_name: endpoint.epoch for endpoint in endpoints}
        for name, (endpoint, client) in list(self._clients.items()):
            if client.is_closed or epochs.get(name, endpoint.epoch) != endpoint.epoch:
                del self._clients[name]
                self._close(client)

    async def aclose(self) -> None:
        """Close every connection; requests that still run on them end with EngineDead."""
        for task in self._connecting.values():
            task.cancel()
        for _, client in self._clients.values():
            self._close(client)
        self._clients.clear()
        for retiring in list(self._retiring):
            await retiring.close()
        await asyncio.gather(*self._closing)

    def _close(self, client: ReplicaClient) -> None:
        """Close what is gone. What is only asked otherwise from now on, ends its requests first."""
        if isinstance(client, RemoteClient):
            self._retiring.add(client)
            task = asyncio.create_task(client.retire())
            task.add_done_callback(lambda _: self._retiring.discard(client))
        else:
            task = asyncio.create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
