"""Requests whose ledger row cannot be written, before they run and after."""

from datetime import timedelta

import openai
import pytest
from django.db import OperationalError

from apps.batches import selectors as batch_selectors
from apps.core.hop import database_hop
from apps.gateway import ledger, ledger_writer
from apps.metering.models import Meter, UsageRecord
from apps.metering.services import orphans_close, reserve, settle
from apps.metering.types import Grant, Reservation, Settlement
from tests.factories import EngineJournalFactory, JournalEntryFactory
from tests.integration.gateway.conftest import ENGINE, chat
from tests.processes import EngineRun
from tests.rows import all_of
from tests.waiting import wait_until, wait_until_async


async def test_database_away_at_reserve(
    client: openai.AsyncOpenAI, engine_process: EngineRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("the database is away")

    before = engine_process.stats()
    monkeypatch.setattr(ledger_writer, "reserve", fail)
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**chat())
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")
    assert engine_process.stats().n_completion_tokens == before.n_completion_tokens
    wait_until("the engine to be idle", engine_process.is_idle)


async def test_a_row_that_was_written_although_nobody_heard_of_it_costs_nothing(
    client: openai.AsyncOpenAI,
    engine_process: EngineRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is lost between the commit and the word of it."""

    def lose_the_word(reservation: Reservation) -> Grant:
        reserve(reservation)
        raise OperationalError("server closed the connection unexpectedly")

    before = engine_process.stats()
    monkeypatch.setattr(ledger_writer, "reserve", lose_the_word)
    monkeypatch.setattr(ledger, "SETTLE_AGAIN_S", 0.05)
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**chat())
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")
    assert refused.value.response.headers["retry-after"] == "1"

    async def row() -> UsageRecord | None:
        found = await database_hop(all_of(UsageRecord).get)
        return found if found.state == UsageRecord.State.SETTLED else None

    found = await wait_until_async("the row to be closed", row, timeout_s=5)
    assert found is not None
    assert (found.outcome, found.error_code) == ("failed", "not_recorded")
    assert (found.n_charged_tokens, found.n_completion_tokens, found.cost_micro) == (0, 0, 0)
    meters = await database_hop(lambda: list(all_of(Meter).values_list("n_held", "n_used")))
    assert meters == [(0, 0)] * 2
    assert engine_process.stats().n_completion_tokens == before.n_completion_tokens


@pytest.mark.parametrize(
    ("is_recorded", "ending"),
    [(False, ("failed", "not_started", False)), (True, ("completed", "", True))],
)
async def test_nor_does_it_where_the_server_dies_before_it_can_say_so(
    client: openai.AsyncOpenAI,
    engine_process: EngineRun,
    monkeypatch: pytest.MonkeyPatch,
    is_recorded: bool,
    ending: tuple[str, str, bool],
) -> None:
    """The sweep closes its row, by what its engine's journal says, or does not say, of it."""

    def lose_the_word(reservation: Reservation) -> Grant:
        reserve(reservation)
        raise OperationalError("server closed the connection unexpectedly")

    async def die(*_: object) -> None:
        """What was to be done later is not done."""

    monkeypatch.setattr(ledger_writer, "reserve", lose_the_word)
    monkeypatch.setattr(ledger.LedgerEntry, "_close_later", die)
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**chat())
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")

    def swept() -> UsageRecord:
        row = all_of(UsageRecord).get()
        assert row.state == UsageRecord.State.RESERVED
        now = row.expires_at + timedelta(seconds=2)
        journal = EngineJournalFactory(
            engine_name=ENGINE, epoch=engine_process.epoch, read_at=now - timedelta(seconds=1)
        )
        if is_recorded:
            JournalEntryFactory(
                journal=journal,
                request_id=row.request_id,
                n_prompt_tokens=row.n_prompt_tokens,
                n_completion_tokens=1,
            )
        assert orphans_close(now) == 1
        row.refresh_from_db()
        return row

    found = await database_hop(swept)
    assert (found.outcome, found.error_code, found.n_charged_tokens > 0) == ending
    meters = await database_hop(lambda: list(all_of(Meter).values_list("n_held", "n_used")))
    assert meters == [(0, found.n_charged_tokens)] * 2


async def test_a_view_that_knows_nothing_of_it_says_the_same(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(batch_selectors, "batches_page", fail)
    with pytest.raises(openai.InternalServerError) as refused:
        await client.batches.list()
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")
    assert refused.value.response.headers["x-should-retry"] == "true"


async def test_database_away_at_settle(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter([OperationalError("the database is away")] * 2)

    def fail_twice(settlement: Settlement) -> bool:
        if (error := next(attempts, None)) is not None:
            raise error
        return settle(settlement)

    monkeypatch.setattr(ledger_writer, "settle", fail_twice)
    monkeypatch.setattr(ledger, "SETTLE_AGAIN_S", 0.05)
    answer = await client.chat.completions.create(**chat(), extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8

    async def is_settled() -> bool:
        row = await database_hop(all_of(UsageRecord).get)
        return (row.state, row.outcome, row.n_completion_tokens) == ("settled", "completed", 8)

    await wait_until_async("the row to be settled after all", is_settled, timeout_s=5)
