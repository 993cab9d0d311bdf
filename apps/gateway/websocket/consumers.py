"""Chat over one WebSocket: several requests at once, cancel, and a token's text at once. Text
never passes a channel layer: each request sends on its own connection, as fast as that is read."""

import asyncio
import contextlib
from typing import Any, Final

import msgspec
from channels.generic.websocket import AsyncWebsocketConsumer

from apps.core.addresses import client_address
from apps.core.exceptions import AppError, AuthenticationFailed, InvalidRequest, PermissionDenied
from apps.core.origins import check_origin
from apps.core.tenancy import tenants_only
from apps.gateway.authentication import MISSING
from apps.gateway.decoding import decode
from apps.gateway.exceptions import TooManyOnConnection
from apps.gateway.runtime import gateway_runtime
from apps.gateway.websocket import frames
from apps.gateway.websocket.credentials import (
    Credential,
    SessionCredential,
    TokenCredential,
)
from apps.gateway.websocket.exceptions import (
    ResumeWindowExceeded,
    SessionNotFound,
    TooManySessions,
)
from apps.gateway.websocket.live import LiveRequests
from apps.gateway.websocket.opening import Opening, opening_of
from apps.gateway.websocket.sessions import Session, sessions
from apps.rbac.types import Principal

AUTH_TIMEOUT_S: Final = 10.0
MAX_LIVE: Final = 16
LAST_WORDS_S: Final = 0.5
CLOSE_FAILED: Final = 1011
CLOSE_REPLACED: Final = 4409
# How a connection closes that was refused; 1011 where the fault is ours.
CLOSE_CODES: Final[dict[type[AppError], int]] = {
    InvalidRequest: 4400,
    AuthenticationFailed: 4401,
    PermissionDenied: 4403,
    SessionNotFound: 4404,
    ResumeWindowExceeded: 4410,
    TooManySessions: 4429,
}
# No goodbye of the client's: its network broke, or it left without giving a reason.
LOST_CODES: Final = frozenset({1005, 1006})


class StreamConsumer(AsyncWebsocketConsumer):
    """One connection of ``/v1/stream``; its requests are its own, or those of a session."""

    async def connect(self) -> None:
        self._credential: Credential | None = None
        self._opening = Opening()
        self._session: Session | None = None
        self._requests = LiveRequests(self._send)
        self._is_replaced = False
        self._closing: asyncio.Task[None] | None = None
        self._principal: Principal | None = None
        self._auth_timer: asyncio.Task[None] | None = None
        await self.accept()
        headers = dict(self.scope["headers"])
        peer, _ = self.scope.get("client") or (None, None)
        forwarded_for = headers.get(b"x-forwarded-for", b"").decode("latin1")
        self._address = client_address(peer, forwarded_for)
        user: Any = self.scope["user"]
        try:
            self._opening = opening_of(self.scope["query_string"])
            if (authorization := headers.get(b"authorization")) is not None:
                await self._admit(self._token_of(authorization.decode("latin1")))
            elif user.is_authenticated:
                check_origin(headers)
                await self._admit(SessionCredential(str(self.scope["session"].session_key)))
            else:
                self._auth_timer = asyncio.create_task(self._refuse_unless_authenticated())
        except AppError as error:
            await self._refuse(error)

    async def disconnect(self, code: int) -> None:
        gateway_runtime().connections.discard(self)
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        if self._session is None:
            await self._requests.aclose()
        else:
            is_kept = code in LOST_CODES and not sessions.is_draining
            self._session.detach(self, is_kept=is_kept)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self._is_replaced:
            return
        if text_data is None:
            await self._error(None, InvalidRequest("Send text frames.", code="invalid_frame"))
            return
        try:
            frame = decode(frames.client_frame_decoder, text_data)
        except InvalidRequest as error:
            client_id = frames.client_id_of(text_data)
            await self._error(client_id if client_id not in self._requests else None, error)
            return
        match frame:
            case frames.AuthFrame():
                await self._on_auth(frame)
            case frames.StartFrame():
                await self._on_start(frame)
            case frames.CancelFrame():
                self._requests.cancel(frame.id)
            case frames.PingFrame():
                await self._send(frames.PongFrame(frame.nonce))

    # -- who ---------------------------------------------------------------------------------

    async def _on_auth(self, frame: frames.AuthFrame) -> None:
        if self._credential is not None:
            error = InvalidRequest("This connection is authenticated.", code="invalid_frame")
            await self._error(None, error)
            return
        try:
            await self._admit(TokenCredential(frame.token, address=self._address))
        except AppError as error:
            await self._refuse(error)

    def _token_of(self, authorization: str) -> TokenCredential:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationFailed(MISSING, code="missing_api_key")
        return TokenCredential(secret.strip(), address=self._address)

    async def _admit(self, credential: Credential) -> None:
        runtime = gateway_runtime()
        runtime.watch()
        generation = runtime.access.generation
        self._principal = principal = await credential.principal()
        tenants_only((principal.tenant_id,))
        runtime.connections.add(self)
        await runtime.access.confirm(principal, since=generation)
        if self._opening.resume or self._opening.session:
            self._enter_session(principal)
        else:
            await self._send(frames.ReadyFrame(tenant=principal.tenant_slug))
        self._credential = credential
        if self._auth_timer is not None:
            self._auth_timer.cancel()

    @property
    def principal(self) -> Principal:
        assert self._principal is not None
        return self._principal

    def interrupt(self, error: AppError) -> None:
        """Close because of ``error``, after what runs was told of it."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._refuse_at_last(error))

    async def _refuse_at_last(self, error: AppError) -> None:
        await self._requests.ended(within_s=LAST_WORDS_S)
        await self._refuse(error)

    def _enter_session(self, principal: Principal) -> None:
        """Speak for a new session or for the one that the query names."""
        if self._opening.session:
            session = sessions.find(self._opening.session, principal)
            last_event = self._opening.last_event
        else:
            session = sessions.open(principal, keep_s=self._opening.resume)
            last_event = 0
        ready = frames.ReadyFrame(tenant=principal.tenant_slug, session=session.id)
        session.attach(self, last_event=last_event, ready=msgspec.json.encode(ready))
        self._session, self._requests = session, session.requests

    async def _refuse(self, error: AppError) -> None:
        """End the connection; a fault of ours is not told as the client's."""
        await self._error(None, error)
        codes = (code for kind, code in CLOSE_CODES.items() if isinstance(error, kind))
        await self.close(code=next(codes, CLOSE_FAILED))

    async def _refuse_unless_authenticated(self) -> None:
        await asyncio.sleep(AUTH_TIMEOUT_S)
        await self._refuse(AuthenticationFailed(MISSING, code="missing_api_key"))

    # -- requests ----------------------------------------------------------------------------

    async def _on_start(self, frame: frames.StartFrame) -> None:
        if self._credential is None:
            await self._refuse(AuthenticationFailed(MISSING, code="missing_api_key"))
        elif frame.id in self._requests:
            error = InvalidRequest(
                f"A request with the id {frame.id!r} is running.", code="duplicate_id", param="id"
            )
            await self._error(None, error)
        elif len(self._requests) >= MAX_LIVE:
            await self._error(frame.id, TooManyOnConnection(MAX_LIVE))
        else:
            self._requests.start(frame, self._credential)

    # -- out ---------------------------------------------------------------------------------

    async def send_encoded(self, frame: bytes) -> None:
        await self.send(text_data=frame.decode())

    def replaced(self) -> None:
        self._is_replaced = True
        # Apart, because a client that reads nothing lets it wait.
        self._closing = asyncio.create_task(self.close(code=CLOSE_REPLACED))

    async def _error(self, client_id: str | None, error: AppError) -> None:
        frame = frames.ErrorFrame(id=client_id, error=error.body()["error"])
        await (self._send(frame) if client_id is None else self._requests.emit(frame))

    async def _send(self, frame: frames.ServerFrame) -> None:
        with contextlib.suppress(ConnectionError):  # its disconnect is on the way
            await self.send_encoded(msgspec.json.encode(frame))
