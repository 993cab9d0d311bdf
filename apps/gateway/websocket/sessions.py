"""Sessions of ``/v1/stream``: requests that outlive the connection they were started on, and the
events that a client which comes back has missed. They live in the memory of one process."""

import asyncio
import secrets
from typing import Final, Protocol

import msgspec

from apps.core.exceptions import InvalidRequest
from apps.gateway.websocket.exceptions import (
    ResumeWindowExceeded,
    SessionNotFound,
    TooManySessions,
)
from apps.gateway.websocket.frames import RequestFrame
from apps.gateway.websocket.live import LiveRequests
from apps.gateway.websocket.window import Bound, EventWindow
from apps.rbac.types import Principal

# Behind a client that is there: more than the buffers of a connection hold, for when it breaks.
HISTORY: Final = Bound(n_events=2048, n_bytes=384 * 1024)
# While nobody is there: about a minute of one fast answer.
AWAY: Final = Bound(n_events=8192, n_bytes=1024 * 1024)
# Events that wait for a connection; requests wait from the first on, until the second.
UNSENT_HIGH: Final = 32
UNSENT_LOW: Final = 8
MAX_OWN_SESSIONS: Final = 16
MAX_SESSIONS: Final = 128


class Connection(Protocol):
    """A socket that a session speaks through."""

    async def send_encoded(self, frame: bytes) -> None:
        """Return once the client has read enough of what was sent before; raises ConnectionError
        when it will read nothing more."""

    def replaced(self) -> None:
        """Another connection speaks for the session now; close, without waiting for it."""


class Session:
    """Made by SessionTable only. Its client is away while no connection is attached."""

    def __init__(self, table: "SessionTable", *, principal: Principal, keep_s: float) -> None:
        self.id = secrets.token_urlsafe(24)
        self.owner = principal.identity
        self.requests = LiveRequests(self.emit)
        self._table = table
        self._keep_s = keep_s
        self._window = EventWindow()
        self._connection: Connection | None = None  # the last one, also while it is away
        self._is_away = True
        self._sender: asyncio.Task[None] | None = None
        self._n_sent = 0
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        self._is_ended = False

    def attach(self, connection: Connection, *, last_event: int, ready: bytes) -> None:
        """Speak through ``connection``: ``ready``, each event after ``last_event``, then what
        comes. One that was attached before is replaced.

        Raises:
            InvalidRequest: there was no such event yet.
            ResumeWindowExceeded: events after it are gone; the session has ended.
        """
        if last_event > self._window.newest:
            raise InvalidRequest(
                f"The last event was {self._window.newest}.",
                code="invalid_value",
                param="last_event",
            )
        if not self._window.has_all_after(last_event):
            self.end()
            raise ResumeWindowExceeded
        self._let_go()
        self._connection, self._is_away, self._n_sent = connection, False, last_event
        self._sender = asyncio.create_task(self._send_all(connection, ready))

    def detach(self, connection: Connection, *, is_kept: bool) -> None:
        """Wait for the client to come back, or end; nothing when another connection took over."""
        if connection is not self._connection or self._is_ended:
            return
        self._is_away = True
        self._let_go()
        if is_kept:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(self._keep_s, self.end)
        else:
            self.end()

    def end_if_away(self) -> None:
        if self._is_away:
            self.end()

    def end(self) -> None:
        """Forget all events and abort the requests. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._let_go()
            self._table.forget(self)

    async def emit(self, frame: RequestFrame) -> None:
        """Number a frame and keep it; return once the client is not far behind. Nothing is
        computed without bound for nobody: a full window ends the session."""
        if self._is_ended:
            return
        frame.event = self._window.newest + 1
        self._window.append(msgspec.json.encode(frame))
        if self._is_away:
            if self._window.is_over(AWAY):
                self.end()
            return
        self._news.set()
        if self._window.newest - self._n_sent >= UNSENT_HIGH:
            self._has_room.clear()
            await self._has_room.wait()

    async def _send_all(self, connection: Connection, ready: bytes) -> None:
        """Send in the order of numbers what is kept; the only one that sends events."""
        try:
            await connection.send_encoded(ready)
            while True:
                while self._n_sent < self._window.newest:
                    await connection.send_encoded(self._window[self._n_sent + 1])
                    self._n_sent += 1
                    if self._window.newest - self._n_sent <= UNSENT_LOW:
                        self._has_room.set()
                self._window.trim(HISTORY, up_to=self._n_sent)
                self._news.clear()
                await self._news.wait()
        except ConnectionError:
            # Nothing counts as sent from here on; whether this was a goodbye is told later.
            self.detach(connection, is_kept=True)

    def _let_go(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._sender is not None:
            self._sender.cancel()
        if self._connection is not None and not self._is_away:
            self._connection.replaced()
        self._is_away = True
        self._has_room.set()  # requests wait for no connection that is gone


class SessionTable:
    """The sessions of this process."""

    def __init__(self) -> None:
        self.is_draining = False
        self._sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, principal: Principal, *, keep_s: float) -> Session:
        """Return a new session, which waits ``keep_s`` seconds for its client each time.

        Raises:
            TooManySessions: the principal has its share, or all are taken.
        """
        session = Session(self, principal=principal, keep_s=keep_s)
        n_own = sum(other.owner == session.owner for other in self._sessions.values())
        if n_own >= MAX_OWN_SESSIONS or len(self._sessions) >= MAX_SESSIONS:
            raise TooManySessions
        self._sessions[session.id] = session
        return session

    def find(self, session_id: str, principal: Principal) -> Session:
        """Return a session of this principal; raises SessionNotFound."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != principal.identity:
            raise SessionNotFound
        return session

    def forget(self, session: Session) -> None:
        """Drop a session that has ended, and abort its requests."""
        del self._sessions[session.id]
        closing = asyncio.create_task(session.requests.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def drain(self) -> None:
        """End what nobody is attached to, and keep no session from now on."""
        self.is_draining = True
        for session in list(self._sessions.values()):
            session.end_if_away()


sessions: Final = SessionTable()
