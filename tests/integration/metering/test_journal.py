"""The ledger beside the engines' journals: orphans are settled by what was recorded, and where the
two differ that is found."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.limits import Limits
from apps.core.prices import Prices
from apps.engines.models import EngineJournal
from apps.engines.types import CONNECTION_LOST, ENGINE_DIED
from apps.metering.models import Meter, UsageRecord, UsageRollup
from apps.metering.selectors import ledger_findings, reconciled_since, scopes_of
from apps.metering.services import ledger_correct, orphans_close, reserve, settle, usage_roll_up
from apps.metering.types import FindingKind, Outcome
from tests.factories import EngineJournalFactory, JournalEntryFactory
from tests.integration.metering.test_services import PRINCIPAL, RESERVATION, settlement
from tests.rows import all_of

pytestmark = pytest.mark.django_db

WHO = replace(
    PRINCIPAL,
    limits=Limits(tokens_per_day=10_000, max_concurrent_requests=500),
    prices=Prices(prompt=7, cached=2, completion=11),
)


@pytest.fixture
def journal() -> EngineJournal:
    made: EngineJournal = EngineJournalFactory()
    return made


def request(request_id: str, *, is_settled: bool = True, **ending: Any) -> UsageRecord:
    reservation = replace(RESERVATION, request_id=request_id, principal=WHO, scopes=scopes_of(WHO))
    grant = reserve(reservation)
    if is_settled:
        settle(replace(settlement(grant, request_id=request_id, **ending), prices=WHO.prices))
    return all_of(UsageRecord).get(request_id=request_id)


def damage(row: UsageRecord, **fields: Any) -> None:
    all_of(UsageRecord).filter(pk=row.pk).update(**fields)


def record(journal: EngineJournal, request_id: str, **fields: Any) -> None:
    JournalEntryFactory(journal=journal, request_id=request_id, **fields)


def budgets() -> set[tuple[str, int, int]]:
    kinds = {4: "open", 7: "month", 10: "day"}
    return {(kinds[len(row.period)], row.n_used, row.n_held) for row in all_of(Meter).all()}


def found(*, now: datetime | None = None) -> list[tuple[str, tuple[str, ...]]]:
    now = now or timezone.now() + timedelta(minutes=3)
    findings = ledger_findings(since=reconciled_since(now), now=now)
    return [(finding.kind.value, finding.request_ids) for finding in findings]


def stored() -> list[Any]:
    models = (UsageRecord, Meter, UsageRollup)
    return [list(all_of(model).order_by("id").values()) for model in models]


# -- orphans -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "outcome", "code", "n_charged", "cost"),
    [
        ({}, "completed", "", 22, 2 * 7 + 8 * 2 + 12 * 11),
        ({"finish_reason": "length"}, "completed", "", 22, 162),
        ({"finish_reason": "abort"}, "aborted", "", 22, 162),
        (
            {"finish_reason": "abort", "error_code": CONNECTION_LOST},
            "interrupted", CONNECTION_LOST, 22, 162,
        ),
        ({"finish_reason": "", "error_code": ENGINE_DIED}, "failed", ENGINE_DIED, 22, 162),
        (
            {"finish_reason": "", "error_code": ENGINE_DIED, "n_completion_tokens": 0},
            "failed", ENGINE_DIED, 0, 0,
        ),
        (
            {"finish_reason": "abort", "error_code": CONNECTION_LOST, "n_completion_tokens": 0},
            "interrupted", CONNECTION_LOST, 10, 30,
        ),
    ],
)  # fmt: skip
def test_an_orphan_is_settled_as_its_engine_recorded(
    journal: EngineJournal,
    fields: dict[str, Any],
    outcome: str,
    code: str,
    n_charged: int,
    cost: int,
) -> None:
    row = request("r", is_settled=False)
    assert budgets() == {("day", 0, 30), ("month", 0, 30), ("open", 0, 1)}
    record(journal, "r", started_at=row.created_at, **fields)
    assert orphans_close(timezone.now()) == 1
    assert orphans_close(timezone.now()) == 0
    row.refresh_from_db()
    assert (row.state, row.outcome, row.error_code) == ("settled", outcome, code)
    assert row.finish_reason == fields.get("finish_reason", "stop")
    assert row.n_completion_tokens == fields.get("n_completion_tokens", 12)
    assert (row.n_cached_tokens, row.n_charged_tokens, row.cost_micro) == (8, n_charged, cost)
    assert (row.ttft_ms, row.total_ms) == (1000.0 if row.n_completion_tokens else None, 2000.0)
    assert budgets() == {("day", n_charged, 0), ("month", n_charged, 0), ("open", 0, 0)}
    usage_roll_up()
    assert found() == []


def test_its_gateway_has_a_moment_to_settle_itself(journal: EngineJournal) -> None:
    row = request("r", is_settled=False)
    read_at = timezone.now()
    record(journal, "r", read_at=read_at)
    assert orphans_close(read_at + timedelta(seconds=19)) == 0
    row.refresh_from_db()
    assert row.state == "reserved"
    assert orphans_close(read_at + timedelta(seconds=21)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"n_prompt_tokens": 9},  # the rest of an embedding request is yet to come
        {"n_completion_tokens": 21},  # more than was reserved
        {"journal__epoch": 3},  # of another start
    ],
)
def test_a_record_that_does_not_fit_settles_nothing(fields: dict[str, int]) -> None:
    JournalEntryFactory(request_id="r", **fields)
    row = request("r", is_settled=False)
    assert orphans_close(timezone.now()) == 0
    assert all_of(UsageRecord).filter(state="reserved").exists()
    assert orphans_close(row.expires_at + timedelta(seconds=40)) == 1
    row.refresh_from_db()
    assert (row.outcome, row.error_code, row.n_charged_tokens) == ("interrupted", "orphaned", 10)


def test_an_embedding_request_of_several_parts_is_settled_whole(journal: EngineJournal) -> None:
    row = request("r", is_settled=False)
    for n_tokens in (4, 6):
        record(journal, "r", n_prompt_tokens=n_tokens, n_completion_tokens=0, n_cached_tokens=0)
    assert orphans_close(timezone.now()) == 1
    row.refresh_from_db()
    assert (row.outcome, row.n_charged_tokens, row.n_completion_tokens) == ("completed", 10, 0)


def test_a_settled_row_is_left_alone(journal: EngineJournal) -> None:
    request("r", n_completion_tokens=3)
    record(journal, "r")
    before = stored()
    assert orphans_close(timezone.now()) == 0
    assert stored() == before


# -- reconciliation ----------------------------------------------------------------------------


def test_what_agrees_is_not_found(journal: EngineJournal) -> None:
    request("r-done")
    record(journal, "r-done")
    request("r-never-ran", outcome=Outcome.FAILED, n_completion_tokens=0, n_cached_tokens=0)
    request("r-cut", outcome=Outcome.FAILED, n_completion_tokens=5, finish_reason="")
    record(journal, "r-cut", n_completion_tokens=7, finish_reason="", error_code=ENGINE_DIED)
    usage_roll_up()
    EngineJournal.objects.update(read_at=timezone.now() + timedelta(minutes=1))
    assert found() == []


def test_a_row_without_a_record_is_found(journal: EngineJournal) -> None:
    row = request("r")
    usage_roll_up()
    assert found() == []  # its journal was not read since
    EngineJournal.objects.update(read_at=timezone.now())
    assert found() == [("unjournaled", ("r",))]
    assert found(now=row.created_at + timedelta(seconds=30)) == []  # it is on its way
    EngineJournal.objects.update(complete_since=timezone.now())
    assert found() == []  # its record may have been pruned
    EngineJournal.objects.update(epoch=5)
    assert found() == []  # of an engine that keeps no journal


def test_a_record_without_a_row_is_found(journal: EngineJournal) -> None:
    record(journal, "r-by-hand")
    assert found() == [("unledgered", ("r-by-hand",))]
    assert found(now=timezone.now() - timedelta(seconds=90)) == []


@pytest.mark.parametrize(
    ("ending", "entry"),
    [
        ({}, {"n_completion_tokens": 11}),
        ({}, {"n_completion_tokens": 13}),
        ({}, {"n_prompt_tokens": 9}),
        ({}, {"n_cached_tokens": 0}),
        (  # more than was ever made
            {"outcome": Outcome.FAILED, "finish_reason": ""},
            {"n_completion_tokens": 11, "error_code": ENGINE_DIED},
        ),
        (  # not cut, and yet less than was made
            {"outcome": Outcome.FAILED, "finish_reason": "", "n_completion_tokens": 1},
            {"n_completion_tokens": 2, "finish_reason": "", "error_code": "engine_error"},
        ),
    ],
)
def test_counts_that_differ_are_found_and_left(
    journal: EngineJournal, actor: Actor, ending: dict[str, Any], entry: dict[str, Any]
) -> None:
    request("r", **ending)
    usage_roll_up()
    record(journal, "r", **entry)
    assert found() == [("journal", ("r",))]
    now = timezone.now()
    before = stored()
    findings = ledger_findings(since=reconciled_since(now), now=now)
    assert ledger_correct(findings, now=now, actor=actor) == 0
    assert stored() == before
    assert not all_of(AuditEvent).exists()


@pytest.mark.parametrize("is_rolled_up", [True, False])
def test_a_record_that_comes_late_is_found_and_charged(
    journal: EngineJournal, actor: Actor, is_rolled_up: bool
) -> None:
    row = request("r", is_settled=False)
    request("r-other")
    record(journal, "r-other")
    assert orphans_close(row.expires_at + timedelta(seconds=40)) == 1
    if is_rolled_up:
        usage_roll_up()
    assert budgets() == {("day", 32, 0), ("month", 32, 0), ("open", 0, 0)}
    record(journal, "r", finish_reason="abort", error_code=CONNECTION_LOST)
    now = timezone.now()
    (finding,) = ledger_findings(since=reconciled_since(now), now=now)
    assert (finding.kind, finding.request_ids) == (FindingKind.LATE, ("r",))
    assert "12 tokens were made" in finding.said
    assert ledger_correct([finding, finding], now=now, actor=actor) == 1  # once
    row.refresh_from_db()
    assert (row.outcome, row.error_code) == ("interrupted", CONNECTION_LOST)
    assert (row.n_completion_tokens, row.n_charged_tokens, row.cost_micro) == (12, 22, 162)
    assert budgets() == {("day", 44, 0), ("month", 44, 0), ("open", 0, 0)}
    (event,) = all_of(AuditEvent).all()
    assert (event.action, event.changes["kind"]) == ("ledger.corrected", "late")
    usage_roll_up()
    assert found() == []
    rollups = all_of(UsageRollup).values_list("n_requests", "n_completion_tokens", "cost_micro")
    assert set(rollups) == {(2, 24, 324)}


@pytest.mark.skipif(connection.vendor != "sqlite", reason="it is SQLite that needs a literal")
def test_the_sweep_reads_open_rows_and_not_the_ledger() -> None:
    asked: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        orphans_close(timezone.now())
    assert len(asked) == 2  # of journaled rows, and of those past their life
    with connection.cursor() as cursor:
        for sql, params in asked:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            plan = " ".join(str(row[3]) for row in cursor.fetchall())
            assert "metering_usagerecord USING INDEX usage_open_idx" in plan, plan
