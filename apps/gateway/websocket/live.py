"""One request of a connection while it lives."""

import asyncio

from apps.gateway import admission
from apps.gateway.generation import GenerationStream
from apps.gateway.types import ChatRequest
from apps.rbac.types import Principal

DOOR = "websocket"


class LiveRequest:
    """``task`` runs it and is set by whoever made it."""

    task: "asyncio.Task[None]"

    def __init__(self) -> None:
        self.is_cancelled = False
        self._stream: GenerationStream | None = None
        self._cancelling: asyncio.Task[None] | None = None

    async def start(self, *, principal: Principal, request: ChatRequest) -> GenerationStream:
        self._stream = await admission.start(principal=principal, request=request, door=DOOR)
        return self._stream

    def cancel(self) -> None:
        """Stop it for its client: a running stream ends with what it has, in its own order; what
        is not running yet never will. Idempotent."""
        if self.is_cancelled:
            return
        self.is_cancelled = True
        if self._stream is None:
            self.task.cancel()
        else:
            self._cancelling = asyncio.create_task(self._stream.cancel())
