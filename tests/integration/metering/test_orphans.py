"""Rows that nobody settled within their life: whose engine had them, whose never did, and of which
nobody can know."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from apps.audit.types import Actor
from apps.engines.models import EngineJournal
from apps.metering.models import UsageRecord
from apps.metering.selectors import ledger_findings, reconciled_since
from apps.metering.services import ledger_correct, orphans_close, usage_roll_up
from apps.metering.types import FindingKind
from tests.factories import EngineJournalFactory, JournalEntryFactory
from tests.integration.metering.test_journal import budgets, found, request

pytestmark = pytest.mark.django_db

FREE = ("settled", "failed", "not_started", 0, 0)
PROMPT = ("settled", "interrupted", "orphaned", 10, 10 * 7)


@pytest.fixture
def row() -> UsageRecord:
    """Of m-0 in its fourth start; its journal is made by the test."""
    return request("r", is_settled=False)


def after_life(row: UsageRecord, seconds: float) -> datetime:
    return row.expires_at + timedelta(seconds=seconds)


def ending(row: UsageRecord) -> tuple[Any, ...]:
    row.refresh_from_db()
    return (row.state, row.outcome, row.error_code, row.n_charged_tokens, row.cost_micro)


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_its_engine_never_had_costs_nothing(row: UsageRecord, is_gone: bool) -> None:
    """The engine lives and was read since the row's life, or it died within it."""
    read_at = after_life(row, -50 if is_gone else 1)
    journal = EngineJournalFactory(read_at=read_at, closed_at=read_at if is_gone else None)
    JournalEntryFactory(journal=journal, request_id="r-other")
    assert orphans_close(after_life(row, -1)) == 0  # it may be dispatched yet
    assert orphans_close(after_life(row, 2)) == 1
    assert ending(row) == FREE
    assert budgets() == {("day", 0, 0), ("month", 0, 0), ("open", 0, 0)}
    usage_roll_up()
    assert [kind for kind, _ in found()] == ["unledgered"]  # the other one


@pytest.mark.parametrize(
    ("fields", "outcome", "n_charged"),
    [
        ({}, "completed", 22),
        ({"finish_reason": "", "error_code": "engine_died"}, "failed", 22),
        ({"n_prompt_tokens": 9}, "interrupted", 10),  # a part; more is not known
        ({"n_completion_tokens": 21}, "interrupted", 10),  # what cannot be
    ],
)
def test_what_its_engine_had_is_charged(
    row: UsageRecord, fields: dict[str, Any], outcome: str, n_charged: int
) -> None:
    """Its record may have come just now, as after a database was away."""
    now = after_life(row, 40)
    journal = EngineJournalFactory(read_at=now)
    JournalEntryFactory(journal=journal, request_id="r", read_at=now, **fields)
    assert orphans_close(now) == 1
    row.refresh_from_db()
    assert (row.outcome, row.n_charged_tokens) == (outcome, n_charged)
    assert budgets() == {("day", n_charged, 0), ("month", n_charged, 0), ("open", 0, 0)}


@pytest.mark.parametrize(
    "fields",
    [
        {"read_at": None},
        {"read_at": F("complete_since")},  # its agent is gone
        {"complete_since": F("read_at")},  # some of it was lost
        {"complete_since": F("read_at"), "closed_at": F("read_at")},
        {"engine_name": "m-1"},
        {"epoch": 5},
    ],
)
def test_of_what_nobody_knows_the_prompt_is_charged(
    row: UsageRecord, fields: dict[str, Any]
) -> None:
    EngineJournalFactory(read_at=after_life(row, 1))
    EngineJournal.objects.update(**fields)
    orphans_close(after_life(row, 40))
    assert ending(row) == PROMPT
    assert budgets() == {("day", 10, 0), ("month", 10, 0), ("open", 0, 0)}


def test_every_journal_of_that_name_must_know(row: UsageRecord) -> None:
    """A deployment was deleted and made again under its name, and its epochs began again."""
    EngineJournalFactory(read_at=row.created_at, closed_at=row.created_at)
    EngineJournalFactory(read_at=row.created_at)
    assert orphans_close(after_life(row, 40)) == 1
    assert ending(row) == PROMPT


def test_a_journal_of_another_machine_is_waited_for(row: UsageRecord) -> None:
    journal = EngineJournalFactory(read_at=after_life(row, -5))
    assert orphans_close(after_life(row, 4)) == 0
    assert row.state == "reserved"
    journal.read_at = after_life(row, 5)
    journal.save()
    assert orphans_close(after_life(row, 6)) == 1
    assert ending(row) == FREE


def test_what_its_engine_still_runs_is_left_open(row: UsageRecord) -> None:
    """As for a server that is frozen, whose connection the engine has no reason to give up."""
    request("r-other", is_settled=False)
    EngineJournalFactory(read_at=after_life(row, 100))
    running = frozenset({"r", "r-unknown"})
    assert orphans_close(after_life(row, -61), running=running) == 0
    expires_at = row.expires_at
    row.refresh_from_db()
    assert row.expires_at == expires_at  # there is time
    assert orphans_close(after_life(row, -5), running=running) == 0
    assert orphans_close(expires_at + timedelta(seconds=50)) == 1  # r-other, by another agent
    now = expires_at + timedelta(seconds=52)
    assert orphans_close(now, running=running) == 0
    row.refresh_from_db()
    assert (row.state, row.expires_at) == ("reserved", now + timedelta(minutes=1))
    JournalEntryFactory(journal__read_at=now, request_id="r")
    assert orphans_close(now + timedelta(seconds=61)) == 1
    assert ending(row)[1:4] == ("completed", "", 22)


def test_a_record_that_comes_after_all_is_found_and_charged(row: UsageRecord, actor: Actor) -> None:
    """Its gateway was no more than frozen, and dispatched it after its row's life."""
    journal = EngineJournalFactory(read_at=after_life(row, 1))
    assert orphans_close(after_life(row, 2)) == 1
    assert ending(row) == FREE
    usage_roll_up()
    assert found() == []
    JournalEntryFactory(journal=journal, request_id="r")
    now = timezone.now()
    (finding,) = ledger_findings(since=reconciled_since(now), now=now)
    assert (finding.kind, finding.request_ids) == (FindingKind.LATE, ("r",))
    assert ledger_correct([finding, finding], now=now, actor=actor) == 1  # once
    assert ending(row)[1:4] == ("completed", "", 22)
    assert budgets() == {("day", 22, 0), ("month", 22, 0), ("open", 0, 0)}
    assert found() == []
