"""The request ids that are in use on one connection, and how many there may be."""

import asyncio
from dataclasses import dataclass

from engine_service.errors import Overloaded
from engine_service.frontend import PreparedPrompt
from engine_service.protocol import FrameError
from engine_service.server.limits import Limits


@dataclass(slots=True)
class OpenRequest:
    """What a connection knows of one request id; a key means that it was started."""

    task: asyncio.Task[None] | None = None
    prompt: PreparedPrompt | None = None
    expiry: asyncio.TimerHandle | None = None
    key: int | None = None

    def drop(self) -> None:
        """Stop what is on its way to the request."""
        if self.task is not None:
            self.task.cancel()
        if self.expiry is not None:
            self.expiry.cancel()


class OpenRequests:
    """From its first message to its terminal, each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_id: dict[str, OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, request_id: str, *, refusal: Overloaded | None) -> OpenRequest:
        """Make the place of a new request. refusal: why the engine takes none, if so.

        Raises:
            FrameError: the id is none, or in use.
            Overloaded: ``refusal``, or this connection has too many.
        """
        if not 1 <= len(request_id) <= self._limits.max_request_id_chars:
            raise FrameError(f"request id of {len(request_id)} characters")
        if request_id in self._by_id:
            raise FrameError(f"request id {request_id!r} is in use on this connection")
        if refusal is not None:
            raise refusal
        n_started = sum(request.key is not None for request in self._by_id.values())
        if len(self._by_id) - n_started >= self._limits.max_prepared:
            raise Overloaded("too many requests wait to be started", retry_after_s=1.0)
        if n_started >= self._limits.max_started:
            raise Overloaded("too many requests run on this connection", retry_after_s=1.0)
        request = self._by_id[request_id] = OpenRequest()
        return request

    def get(self, request_id: str) -> OpenRequest | None:
        return self._by_id.get(request_id)

    def end(self, request_id: str) -> None:
        """Forget a request, if it is known."""
        self._by_id.pop(request_id, None)

    def drop_all(self) -> list[int]:
        """Forget all of them and return the keys of those that were started."""
        requests, self._by_id = self._by_id, {}
        for request in requests.values():
            request.drop()
        return [request.key for request in requests.values() if request.key is not None]
