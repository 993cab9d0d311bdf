"""Chat over one WebSocket: several requests at once, cancel, and a token's text at once. Text
never passes a channel layer: each request sends on its own connection, as fast as that is read."""

import asyncio
import logging
from typing import Any, Final

import msgspec
from channels.generic.websocket import AsyncWebsocketConsumer

from apps.core.exceptions import AppError, AuthenticationFailed, InvalidRequest, PermissionDenied
from apps.engines.types import GenerationResult
from apps.gateway.answers import Callers, FinishReason
from apps.gateway.authentication import MISSING
from apps.gateway.chat_schemas import chat_request
from apps.gateway.decoding import decode
from apps.gateway.exceptions import TooManyOnConnection, app_error_of
from apps.gateway.rest.wire import usage_of
from apps.gateway.websocket import frames
from apps.gateway.websocket.credentials import (
    Credential,
    SessionCredential,
    TokenCredential,
    check_origin,
)
from apps.gateway.websocket.live import LiveRequest

logger = logging.getLogger(__name__)

AUTH_TIMEOUT_S: Final = 10.0
MAX_LIVE: Final = 16
CLOSE_FAILED: Final = 1011
CLOSE_UNAUTHENTICATED: Final = 4401
CLOSE_FORBIDDEN: Final = 4403

_NOTHING: Final = GenerationResult(
    finish_reason="abort", n_prompt_tokens=0, n_cached_tokens=0, n_completion_tokens=0
)


class StreamConsumer(AsyncWebsocketConsumer):
    """One connection of ``/v1/stream``."""

    async def connect(self) -> None:
        self._credential: Credential | None = None
        self._live: dict[str, LiveRequest] = {}
        self._auth_timer: asyncio.Task[None] | None = None
        await self.accept()
        headers = dict(self.scope["headers"])
        user: Any = self.scope["user"]
        try:
            if (authorization := headers.get(b"authorization")) is not None:
                await self._admit(_token_of(authorization.decode("latin1")))
            elif user.is_authenticated:
                check_origin(headers)
                await self._admit(SessionCredential(user))
            else:
                self._auth_timer = asyncio.create_task(self._refuse_unless_authenticated())
        except AppError as error:
            await self._refuse(error)

    async def disconnect(self, code: int) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        for request in self._live.values():
            request.task.cancel()
        await asyncio.gather(
            *(request.task for request in self._live.values()), return_exceptions=True
        )

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is None:
            await self._error(None, InvalidRequest("Send text frames.", code="invalid_frame"))
            return
        try:
            frame = decode(frames.client_frame_decoder, text_data)
        except InvalidRequest as error:
            client_id = frames.client_id_of(text_data)
            await self._error(client_id if client_id not in self._live else None, error)
            return
        match frame:
            case frames.AuthFrame():
                await self._on_auth(frame)
            case frames.StartFrame():
                await self._on_start(frame)
            case frames.CancelFrame():
                if (live := self._live.get(frame.id)) is not None:
                    live.cancel()
            case frames.PingFrame():
                await self._send(frames.PongFrame(frame.nonce))

    # -- who ---------------------------------------------------------------------------------

    async def _on_auth(self, frame: frames.AuthFrame) -> None:
        if self._credential is not None:
            error = InvalidRequest("This connection is authenticated.", code="invalid_frame")
            await self._error(None, error)
            return
        try:
            await self._admit(TokenCredential(frame.token))
        except AppError as error:
            await self._refuse(error)

    async def _admit(self, credential: Credential) -> None:
        principal = await credential.principal()
        self._credential = credential
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        await self._send(frames.ReadyFrame(tenant=principal.tenant_slug))

    async def _refuse(self, error: AppError) -> None:
        """End the connection; a fault of ours is not told as the client's."""
        await self._error(None, error)
        code = CLOSE_FAILED
        if isinstance(error, AuthenticationFailed):
            code = CLOSE_UNAUTHENTICATED
        elif isinstance(error, PermissionDenied):
            code = CLOSE_FORBIDDEN
        await self.close(code=code)

    async def _refuse_unless_authenticated(self) -> None:
        await asyncio.sleep(AUTH_TIMEOUT_S)
        await self._refuse(AuthenticationFailed(MISSING, code="missing_api_key"))

    # -- requests ----------------------------------------------------------------------------

    async def _on_start(self, frame: frames.StartFrame) -> None:
        if self._credential is None:
            await self._refuse(AuthenticationFailed(MISSING, code="missing_api_key"))
            return
        if frame.id in self._live:
            error = InvalidRequest(
                f"A request with the id {frame.id!r} is running.", code="duplicate_id", param="id"
            )
            await self._error(None, error)
            return
        if len(self._live) >= MAX_LIVE:
            await self._error(frame.id, TooManyOnConnection(MAX_LIVE))
            return
        live = LiveRequest()
        live.task = asyncio.create_task(self._run(frame, live, self._credential))
        self._live[frame.id] = live

    async def _run(
        self, frame: frames.StartFrame, live: LiveRequest, credential: Credential
    ) -> None:
        """Run one request to its one terminal frame."""
        try:
            end = await self._generate(frame, live, credential)
        except asyncio.CancelledError:
            if not live.is_cancelled:
                raise  # the connection is gone
            end = _finished(frame.id, _NOTHING)
        except Exception as error:
            if not isinstance(error, AppError):
                logger.error("A request failed", exc_info=error)
            end = frames.ErrorFrame(id=frame.id, error=app_error_of(error).body()["error"])
        finally:
            self._live.pop(frame.id, None)
        await self._send(end)

    async def _generate(
        self, frame: frames.StartFrame, live: LiveRequest, credential: Credential
    ) -> frames.ServerFrame:
        request = chat_request(frame)
        stream = await live.start(principal=await credential.principal(), request=request)
        async with stream:
            await self._send(
                frames.StartedFrame(
                    id=frame.id,
                    request_id=stream.request_id,
                    model=stream.model,
                    n_prompt_tokens=stream.n_prompt_tokens,
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
                    await self._send(piece)
        assert stream.result is not None
        return _finished(frame.id, stream.result, finish_reason=finish_reason)

    # -- out ---------------------------------------------------------------------------------

    async def _error(self, client_id: str | None, error: AppError) -> None:
        await self._send(frames.ErrorFrame(id=client_id, error=error.body()["error"]))

    async def _send(self, frame: frames.ServerFrame) -> None:
        await self.send(text_data=msgspec.json.encode(frame).decode())


def _finished(
    client_id: str, result: GenerationResult, *, finish_reason: FinishReason | None = None
) -> frames.FinishedFrame:
    reason = finish_reason or result.finish_reason
    return frames.FinishedFrame(
        id=client_id,
        finish_reason="cancelled" if reason == "abort" else reason,
        usage=usage_of(result),
    )


def _token_of(authorization: str) -> TokenCredential:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationFailed(MISSING, code="missing_api_key")
    return TokenCredential(secret.strip())
