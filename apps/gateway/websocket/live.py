"""The requests of one client while they live, each with one end that its client is told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from msgspec import UNSET

from apps.core.exceptions import AppError
from apps.engines.types import GenerationResult
from apps.gateway import admission
from apps.gateway.answers import Callers, FinishReason
from apps.gateway.chat_schemas import chat_request
from apps.gateway.exceptions import app_error_of
from apps.gateway.generation import GenerationStream
from apps.gateway.rest.wire import usage_of
from apps.gateway.runtime import gateway_runtime
from apps.gateway.types import WEBSOCKET, ChatRequest
from apps.gateway.websocket import frames
from apps.gateway.websocket.credentials import Credential
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)


_NOTHING: Final = GenerationResult(
    finish_reason="abort", n_prompt_tokens=0, n_cached_tokens=0, n_completion_tokens=0
)


class LiveRequest:
    """``task`` runs it and is set by whoever made it."""

    task: "asyncio.Task[None]"

    def __init__(self) -> None:
        self.is_cancelled = False
        self._stream: GenerationStream | None = None
        self._cancelling: asyncio.Task[None] | None = None

    async def start(self, *, principal: Principal, request: ChatRequest) -> GenerationStream:
        try:
            self._stream = await admission.start(
                principal=principal, request=request, door=WEBSOCKET
            )
        except AppError as error:
            gateway_runtime().refusals.note(principal, error)
            raise
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


class LiveRequests:
    """emit: takes each frame of theirs, and lets them wait while their client is slow."""

    def __init__(self, emit: Callable[[frames.RequestFrame], Awaitable[None]]) -> None:
        self.emit = emit
        self._live: dict[str, LiveRequest] = {}

    def __contains__(self, client_id: str | None) -> bool:
        return client_id in self._live

    def __len__(self) -> int:
        return len(self._live)

    def start(self, frame: frames.StartFrame, credential: Credential) -> None:
        """Run a request under an id that is free."""
        live = LiveRequest()
        live.task = asyncio.create_task(self._run(frame, live, credential))
        self._live[frame.id] = live

    def cancel(self, client_id: str) -> None:
        """Stop a request for its client, if there is one of that id."""
        if (live := self._live.get(client_id)) is not None:
            live.cancel()

    async def ended(self, *, within_s: float) -> None:
        """Return when none is left, at the latest after ``within_s``."""
        if tasks := [request.task for request in self._live.values()]:
            await asyncio.wait(tasks, timeout=within_s)

    async def aclose(self) -> None:
        """Abort all, because their client is gone; return once they are settled."""
        tasks = [request.task for request in self._live.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, frame: frames.StartFrame, live: LiveRequest, credential: Credential
    ) -> None:
        """Run one request to its one terminal frame."""
        end: frames.RequestFrame
        try:
            end = await self._generate(frame, live, credential)
        except asyncio.CancelledError:
            if not live.is_cancelled:
                raise  # the client is gone
            end = _finished(frame.id, _NOTHING)
        except Exception as error:
            if not isinstance(error, AppError):
                logger.error("A request failed", exc_info=error)
            end = frames.ErrorFrame(id=frame.id, error=app_error_of(error).body()["error"])
        finally:
            self._live.pop(frame.id, None)
        await self.emit(end)

    async def _generate(
        self, frame: frames.StartFrame, live: LiveRequest, credential: Credential
    ) -> frames.FinishedFrame:
        request = replace(chat_request(frame), conversation=frame.conversation)
        stream = await live.start(principal=await credential.principal(), request=request)
        async with stream:
            await self.emit(
                frames.StartedFrame(
                    id=frame.id,
                    request_id=stream.request_id,
                    model=stream.model,
                    n_prompt_tokens=stream.n_prompt_tokens,
                    fallback=UNSET if stream.fallback is None else stream.fallback,
                )
            )
            callers, finish_reason = Callers(), None
            async for delta in stream:
                finish_reason = callers.finish_reason(delta)
                shown = finish_reason if stream.n_answers > 1 else None
                piece = frames.delta_frame(
                    frame.id, delta, request_id=stream.request_id, finish_reason=shown
                )
                if piece is not None:
                    await self.emit(piece)
        assert stream.result is not None
        return _finished(frame.id, stream.result, finish_reason=finish_reason)


def _finished(
    client_id: str, result: GenerationResult, *, finish_reason: FinishReason | None = None
) -> frames.FinishedFrame:
    reason = finish_reason or result.finish_reason
    return frames.FinishedFrame(
        id=client_id,
        finish_reason="cancelled" if reason == "abort" else reason,
        usage=usage_of(result),
    )
