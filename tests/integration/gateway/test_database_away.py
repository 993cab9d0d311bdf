"""Requests whose ledger row cannot be written, before they run and after."""

import openai
import pytest
from django.db import OperationalError

from apps.core.hop import database_hop
from apps.gateway import ledger
from apps.metering.models import UsageRecord
from apps.metering.services import settle
from apps.metering.types import Settlement
from tests.integration.gateway.conftest import chat
from tests.processes import EngineRun
from tests.waiting import wait_until, wait_until_async


async def test_database_away_at_reserve(
    client: openai.AsyncOpenAI, engine_process: EngineRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("the database is away")

    before = engine_process.stats()
    monkeypatch.setattr(ledger, "reserve", fail)
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**chat())
    assert (refused.value.status_code, refused.value.code) == (503, "unavailable")
    assert engine_process.stats().n_completion_tokens == before.n_completion_tokens
    wait_until("the engine to be idle", engine_process.is_idle)


async def test_database_away_at_settle(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter([OperationalError("the database is away")] * 2)

    def fail_twice(settlement: Settlement) -> bool:
        if (error := next(attempts, None)) is not None:
            raise error
        return settle(settlement)

    monkeypatch.setattr(ledger, "settle", fail_twice)
    monkeypatch.setattr(ledger, "SETTLE_AGAIN_S", 0.05)
    answer = await client.chat.completions.create(**chat(), extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8

    async def is_settled() -> bool:
        row = await database_hop(UsageRecord.objects.get)
        return (row.state, row.outcome, row.n_completion_tokens) == ("settled", "completed", 8)

    await wait_until_async("the row to be settled after all", is_settled, timeout_s=5)
