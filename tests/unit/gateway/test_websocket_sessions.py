"""Sessions of /v1/stream without a server: numbers, who may come back, and their ends."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from apps.core.exceptions import InvalidRequest
from apps.core.limits import UNLIMITED
from apps.gateway.websocket import sessions as module
from apps.gateway.websocket.exceptions import (
    ResumeWindowExceeded,
    SessionNotFound,
    TooManySessions,
)
from apps.gateway.websocket.frames import DeltaFrame, StartFrame
from apps.gateway.websocket.sessions import Session, SessionTable
from apps.gateway.websocket.window import Bound
from apps.rbac.types import Principal
from tests.waiting import wait_until_async

ANN = Principal(
    tenant_id=1, tenant_slug="a", cache_salt="s", label="ann", limits=UNLIMITED, api_token_id=1
)
READY = b'"ready"'


class Client:
    """A connection that keeps what it was sent, and reads nothing while ``reads`` is unset."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.is_replaced = self.is_gone = False
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def events(self) -> list[int]:
        return [frame["event"] for frame in self.frames if frame != "ready"]

    async def send_encoded(self, frame: bytes) -> None:
        await self.reads.wait()
        if self.is_gone:
            raise ConnectionResetError
        self.frames.append(msgspec.json.decode(frame))

    def replaced(self) -> None:
        self.is_replaced = True

    async def has(self, events: list[int]) -> None:
        await wait_until_async(f"the events {events}", lambda: self.events == events)


class Waiting:
    """A credential whose answer never comes; says whether the request was aborted."""

    def __init__(self) -> None:
        self.is_asked = self.is_aborted = False

    async def principal(self) -> Principal:
        self.is_asked = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_aborted = True
            raise
        raise AssertionError


@pytest.fixture
def table() -> SessionTable:
    return SessionTable()


def opened(table: SessionTable, *, keep_s: float = 60) -> tuple[Session, Client]:
    session, client = table.open(ANN, keep_s=keep_s), Client()
    session.attach(client, last_event=0, ready=READY)
    return session, client


async def emit(session: Session, n_events: int, *, text: str = "x") -> None:
    for _ in range(n_events):
        await session.emit(DeltaFrame(id="c1", text=text))


async def runs(session: Session) -> Waiting:
    """Start a request in the session."""
    credential = Waiting()
    body = {
        "type": "start",
        "id": "c1",
        "model": "m",
        "messages": [{"role": "user", "content": ""}],
    }
    session.requests.start(msgspec.convert(body, StartFrame), credential)
    await wait_until_async("the request to run", lambda: credential.is_asked)
    return credential


# -- coming back -------------------------------------------------------------------------------


async def test_what_was_missed_comes_in_order_then_what_is_new(table: SessionTable) -> None:
    session, first = opened(table)
    await emit(session, 3)
    await first.has([1, 2, 3])
    session.detach(first, is_kept=True)
    await emit(session, 2)
    second = Client()
    session.attach(second, last_event=2, ready=READY)
    await emit(session, 2)
    await second.has([3, 4, 5, 6, 7])
    assert second.frames[0] == "ready"
    assert first.events == [1, 2, 3] and not first.is_replaced


async def test_a_second_connection_takes_over(table: SessionTable) -> None:
    session, first = opened(table)
    await emit(session, 1)
    await first.has([1])
    second = Client()
    session.attach(second, last_event=0, ready=READY)
    assert first.is_replaced
    session.detach(first, is_kept=False)  # it closes at last, and that is its own affair
    await emit(session, 1)
    await second.has([1, 2])
    assert first.events == [1] and len(table) == 1


async def test_too_old_a_number_ends_the_session(
    table: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HISTORY", Bound(n_events=2, n_bytes=10_000))
    session, client = opened(table)
    request = await runs(session)
    await emit(session, 5)
    await client.has([1, 2, 3, 4, 5])
    session.detach(client, is_kept=True)
    with pytest.raises(ResumeWindowExceeded):
        session.attach(Client(), last_event=2, ready=READY)
    await wait_until_async("the request to be aborted", lambda: request.is_aborted)
    with pytest.raises(SessionNotFound):
        table.find(session.id, ANN)


async def test_a_number_that_never_was_harms_nothing(table: SessionTable) -> None:
    session, client = opened(table)
    await emit(session, 1)
    with pytest.raises(InvalidRequest) as refused:
        session.attach(Client(), last_event=2, ready=READY)
    assert refused.value.param == "last_event"
    await emit(session, 1)
    await client.has([1, 2])
    assert not client.is_replaced


async def test_only_its_owner_finds_a_session(table: SessionTable) -> None:
    session, _ = opened(table)
    assert table.find(session.id, replace(ANN, label="renamed", tenant_slug="b")) is session
    for other in (
        replace(ANN, api_token_id=2),
        replace(ANN, tenant_id=2),
        replace(ANN, api_token_id=None, user_id=1),
    ):
        with pytest.raises(SessionNotFound) as foreign:
            table.find(session.id, other)
        with pytest.raises(SessionNotFound) as unknown:
            table.find("x" * 32, other)
        assert foreign.value.body() == unknown.value.body()


async def test_what_a_dead_connection_swallows_does_not_count_as_sent(
    table: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the loss and the word of it requests run on, and may push nothing out."""
    monkeypatch.setattr(module, "HISTORY", Bound(n_events=2, n_bytes=10_000))
    session, client = opened(table)
    await emit(session, 1)
    await client.has([1])
    client.is_gone = True
    await asyncio.wait_for(emit(session, 100), 5)
    session.detach(client, is_kept=True)
    session.attach(second := Client(), last_event=1, ready=READY)
    await second.has(list(range(2, 102)))
    assert not client.is_replaced


async def test_a_goodbye_that_is_told_after_the_loss_ends_it(table: SessionTable) -> None:
    session, client = opened(table)
    client.is_gone = True
    await emit(session, 1)
    await wait_until_async("the loss to be seen", lambda: session._is_away)
    assert len(table) == 1
    session.detach(client, is_kept=False)
    assert len(table) == 0


# -- bounds ------------------------------------------------------------------------------------


async def test_requests_wait_for_a_slow_client_and_for_no_client_that_is_gone(
    table: SessionTable,
) -> None:
    session, client = opened(table)
    client.reads.clear()
    emitting = asyncio.create_task(emit(session, 200))
    await wait_until_async("news", lambda: session._window.newest == module.UNSENT_HIGH)
    for _ in range(20):
        await asyncio.sleep(0)
    assert session._window.newest == module.UNSENT_HIGH and not emitting.done()
    session.detach(client, is_kept=True)
    await asyncio.wait_for(emitting, 5)
    assert session._window.newest == 200 and client.events == []


async def test_a_client_that_reads_again_gets_everything(table: SessionTable) -> None:
    session, client = opened(table)
    client.reads.clear()
    emitting = asyncio.gather(emit(session, 150), emit(session, 150))
    await wait_until_async("news", lambda: session._window.newest > module.UNSENT_HIGH)
    client.reads.set()
    await asyncio.wait_for(emitting, 5)
    await client.has(list(range(1, 301)))


@pytest.mark.parametrize("bound", [Bound(n_events=5, n_bytes=10_000), Bound(999, 400)])
async def test_a_full_window_ends_a_session_that_nobody_attends(
    table: SessionTable, monkeypatch: pytest.MonkeyPatch, bound: Bound
) -> None:
    monkeypatch.setattr(module, "AWAY", bound)
    session, client = opened(table)
    request = await runs(session)
    await emit(session, 20)  # no bound for whoever is there
    session.detach(client, is_kept=True)
    assert len(table) == 1 and not request.is_aborted
    await emit(session, 20)
    await wait_until_async("the request to be aborted", lambda: request.is_aborted)
    assert len(table) == 0 and not table._closing


async def test_sessions_are_bounded_for_each_principal_and_in_all(
    table: SessionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OWN_SESSIONS", 2)
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    session, _ = opened(table)
    opened(table)
    with pytest.raises(TooManySessions):
        table.open(ANN, keep_s=1)
    table.open(replace(ANN, api_token_id=2), keep_s=1)
    with pytest.raises(TooManySessions):
        table.open(replace(ANN, api_token_id=3), keep_s=1)
    assert len(table) == 3
    session.end()
    opened(table)


# -- ends --------------------------------------------------------------------------------------


async def test_nobody_comes_back_in_time(table: SessionTable) -> None:
    session, client = opened(table, keep_s=0.05)
    request = await runs(session)
    session.detach(client, is_kept=True)
    session.attach(client := Client(), last_event=0, ready=READY)  # the first wait is over
    await emit(session, 1)
    await client.has([1])
    session.detach(client, is_kept=True)
    await wait_until_async("the session to expire", lambda: len(table) == 0)
    await wait_until_async("the request to be aborted", lambda: request.is_aborted)
    await wait_until_async("nothing to be left", lambda: not table._closing)
    await emit(session, 1)  # a late word goes nowhere
    assert session._window.newest == 1


async def test_a_goodbye_ends_it_at_once(table: SessionTable) -> None:
    session, client = opened(table)
    request = await runs(session)
    session.detach(client, is_kept=False)
    assert len(table) == 0
    await wait_until_async("the request to be aborted", lambda: request.is_aborted)


async def test_draining_ends_what_nobody_attends(table: SessionTable) -> None:
    away, client = opened(table)
    away.detach(client, is_kept=True)
    request = await runs(away)
    attended, _ = opened(table)
    table.drain()
    assert table.is_draining and len(table) == 1
    assert table.find(attended.id, ANN) is attended
    await wait_until_async("the request to be aborted", lambda: request.is_aborted)
