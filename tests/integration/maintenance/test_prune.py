"""``prune``: what goes, what stays, and that a dry run changes nothing."""

import os
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.batches.models import UploadedFile
from apps.core import pruning as core_pruning
from apps.core.models import ChangeStamp
from apps.core.pruning import PruneOrder, rows_prune
from apps.core.selectors import change_stamps
from apps.core.tenancy import every_tenant
from apps.engines.models import EngineCrash, EngineJournal, JournalEntry, QuarantinedRequest
from apps.feedback.models import MetricEvent
from apps.judging.models import AnswerSample
from apps.metering.models import Meter, UsageRecord
from apps.metering.pruning import meters_past
from apps.rbac.models import RoleGrant, TokenFamily
from apps.registry.services import import_lock
from apps.sign_in.models import ProviderIdentity
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    BatchFactory,
    EngineJournalFactory,
    EngineProcessFactory,
    GroupMappingFactory,
    JournalEntryFactory,
    MetricEventFactory,
    QuarantinedRequestFactory,
    TenantFactory,
    UploadedFileFactory,
    UsageRecordFactory,
    UserFactory,
)
from tests.factories.judging import AnswerSampleFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db

NOTHING = """\
{verb} 0 answers that waited 7 days for a judge
{verb} 0 old crashes of engines
{verb} 0 families of access tokens that are over
{verb} 0 feedback and events past FEEDBACK_KEEP_DAYS
{verb} 0 files and results of batches past FILES_KEEP_DAYS
{verb} 0 half-written folders of imports
{verb} 0 old entries of the engines' journals
{verb} 0 old logs
{verb} 0 meters of past days and months
{verb} 0 purges of kept answers, long past
{verb} 0 requests whose quarantine is over
{verb} 0 sessions that ran out
{verb} 0 people whose groups were not heard of for OIDC_GROUPS_KEEP_DAYS
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, settings: Any) -> Path:
    settings.VAR_DIR = tmp_path
    settings.MODELS_DIR = tmp_path / "models"
    settings.FILES_DIR = tmp_path / "files"
    settings.FILES_KEEP_DAYS = settings.FEEDBACK_KEEP_DAYS = 30
    for name in ("models", "files", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


def prune(*arguments: str) -> str:
    out = StringIO()
    call_command("prune", *arguments, stdout=out)
    return out.getvalue()


def order(now: datetime, keep_days: int) -> PruneOrder:
    return PruneOrder(now=now, keep_days=keep_days, is_dry=False)


def file_stored(places: Path, *, age_days: int, **fields: Any) -> UploadedFile:
    row = UploadedFileFactory(**fields)
    at = timezone.now() - timedelta(days=age_days)
    all_of(UploadedFile).filter(pk=row.pk).update(created_at=at)
    (places / "files" / row.file_id).write_bytes(b"{}")
    return row


def old_file(path: Path, *, age_days: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    at = (timezone.now() - timedelta(days=age_days)).timestamp()
    os.utime(path, (at, at))
    return path


@pytest.mark.parametrize(
    ("now", "keep_days", "left"),
    [
        (
            datetime(2026, 3, 30, 23, tzinfo=UTC),
            30,
            {"2026-02-28", "2026-02", "2026-03-01", "2026-03"},
        ),
        # A day and a month are past when as long ago as that has gone by since their end.
        (datetime(2026, 3, 31, 0, tzinfo=UTC), 30, {"2026-03-01", "2026-03"}),
        (datetime(2026, 4, 30, 23, tzinfo=UTC), 30, {"2026-03"}),
        (datetime(2026, 5, 1, 0, tzinfo=UTC), 30, set()),
    ],
)
def test_which_meters_are_past(now: datetime, keep_days: int, left: set[str]) -> None:
    for period in ("2025-12", "2026-02-27", "2026-02-28", "2026-02", "2026-03-01", "2026-03"):
        Meter.objects.create(scope="tenant:1", period=period, n_used=5)
    Meter.objects.create(scope="tenant:1", period="open")
    Meter.objects.create(scope="tenant:1", period="2020-01-01", n_held=3)
    with every_tenant("as pruning does"):
        rows_prune(meters_past(order(now, keep_days)), order(now, keep_days))
    assert set(all_of(Meter).values_list("period", flat=True)) == {*left, "open", "2020-01-01"}


@every_tenant("as pruning does")
def test_rows_go_in_parts_each_locked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_pruning, "ROWS_AT_ONCE", 2)
    for number in range(5):
        Meter.objects.create(scope=f"tenant:{number}", period="2020-01-01")
    wanted = order(timezone.now(), 30)
    with CaptureQueriesContext(connection) as queries:
        assert rows_prune(meters_past(wanted), wanted) == 5
    deletes = [q["sql"] for q in queries if q["sql"].startswith("DELETE")]
    reads = [q["sql"] for q in queries if q["sql"].startswith("SELECT")]
    assert len(deletes) == 3
    assert all("ORDER BY 1 ASC LIMIT 2" in sql for sql in reads)
    if connection.vendor == "postgresql":
        assert all(sql.endswith("FOR UPDATE") for sql in reads)
    assert not all_of(Meter).exists()


@every_tenant("as pruning does")
def test_it_stops_between_parts_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_pruning, "ROWS_AT_ONCE", 2)
    for number in range(5):
        Meter.objects.create(scope=f"tenant:{number}", period="2020-01-01")
    said = iter([False, True])
    wanted = PruneOrder(now=timezone.now(), keep_days=30, is_dry=False, is_over=lambda: next(said))
    assert rows_prune(meters_past(wanted), wanted) == 2
    assert all_of(Meter).count() == 3


def populate(places: Path) -> UploadedFile:
    """One of each that goes, beside one of each that stays; return the file that stays."""
    now = timezone.now()
    UsageRecordFactory(created_at=now - timedelta(days=4000))
    AuditEventFactory()
    Meter.objects.create(scope="tenant:1", period="2020-01-01")
    Meter.objects.create(scope="tenant:1", period=f"{now:%Y-%m-%d}")
    for epoch, age_days in ((1, 31), (2, 29)):
        at = now - timedelta(days=age_days)
        EngineCrash.objects.create(engine_name="m-0", epoch=epoch, at=at, reason="boom")
    for name, age_days, arm in (("gone", 31, ""), ("stays", 31, "exp:a"), ("young", 29, "")):
        at = now - timedelta(days=age_days)
        MetricEventFactory(request_id=name, created_at=at, experiment_arm=arm)
    for name, age_days in (("gone", 8), ("stays", 6)):
        AnswerSampleFactory(request_id=name, created_at=now - timedelta(days=age_days))
    QuarantinedRequestFactory(expires_at=now - timedelta(seconds=1))
    QuarantinedRequestFactory(request_id="stays")
    journal = EngineJournalFactory(complete_since=now - timedelta(days=99))
    EngineJournalFactory(closed_at=now - timedelta(days=31))
    EngineJournalFactory(closed_at=now - timedelta(days=29))
    JournalEntryFactory(journal=journal, read_at=now - timedelta(days=31))
    JournalEntryFactory(journal=journal, request_id="stays", read_at=now - timedelta(days=29))
    Session.objects.create(session_key="gone", expire_date=now - timedelta(seconds=1))
    Session.objects.create(session_key="live", expire_date=now + timedelta(hours=1))
    tenant = TenantFactory()
    for name, age_days in (("gone", 31), ("stays", 29)):
        TokenFamily.objects.create(
            public_id=name,
            api_token=ApiTokenFactory(tenant=tenant),
            scopes=["inference"],
            expires_at=now - timedelta(days=age_days),
        )
    for name, age_days in (("responses:tenant:1", 2), ("responses:tenant:2", 1), ("routes", 99)):
        ChangeStamp.objects.create(name=name, value=1)
        moved_at = now - timedelta(days=age_days)
        ChangeStamp.objects.filter(name=name).update(moved_at=moved_at)
    read = file_stored(places, age_days=31, tenant=tenant)
    BatchFactory(tenant=tenant, input_file_id=read.file_id)
    done = file_stored(places, age_days=31, tenant=tenant)
    BatchFactory(tenant=tenant, input_file_id=done.file_id, status="completed")
    file_stored(places, age_days=29, tenant=tenant)
    mapping = GroupMappingFactory()
    for name, age_days in (("gone", 91), ("stays", 89)):
        person = UserFactory()
        RoleGrant.objects.create(user=person, role=mapping.role, mapping=mapping)
        seen_at = now - timedelta(days=age_days)
        ProviderIdentity.objects.create(
            user=person, issuer="https://id.test", subject=name, seen_at=seen_at
        )
    (places / "models" / "tiny" / ".2.partial").mkdir(parents=True)
    (places / "models" / "tiny" / ".2.partial" / "config.json").write_text("{}")
    (places / "models" / "tiny" / "1").mkdir()
    EngineProcessFactory(log_path=str(places / "logs" / "engine-known.log"))
    for name in ("server.log.1", "engine-known.log", "engine-gone.log", "server.log"):
        old_file(places / "logs" / name, age_days=31)
    old_file(places / "logs" / "agent.log.1", age_days=29)
    return read


def state(places: Path) -> tuple[Any, ...]:
    files = sorted(str(path.relative_to(places)) for path in places.rglob("*"))
    rows = (
        UsageRecord,
        MetricEvent,
        AnswerSample,
        EngineJournal,
        JournalEntry,
        AuditEvent,
        Meter,
        Session,
        UploadedFile,
        TokenFamily,
        RoleGrant,
    )
    return files, [sorted(all_of(model).values_list("pk", flat=True)) for model in rows]  # type: ignore[attr-defined]


def test_a_dry_run_says_what_would_go_and_changes_nothing(places: Path) -> None:
    populate(places)
    (places / "models" / "tiny" / ".import-lock").touch()
    before = state(places)
    assert prune("--dry-run") == NOTHING.format(verb="would remove").replace(" 0 ", " 1 ").replace(
        "1 old logs", "2 old logs"
    )
    assert state(places) == before


def test_what_is_over_goes_and_the_rest_stays(places: Path) -> None:
    read = populate(places)
    assert prune() == NOTHING.format(verb="removed").replace(" 0 ", " 1 ").replace(
        "1 old logs", "2 old logs"
    )
    assert all_of(UsageRecord).count() == 1
    assert [event.action for event in all_of(AuditEvent).order_by("pk")][1:] == [
        "role.withdrawn",
        "platform.pruned",
    ]
    assert ProviderIdentity.objects.get(user__role_grants__isnull=False).subject == "stays"
    assert all_of(AuditEvent).latest("pk").changes == {
        "keep_days": 30,
        "answer_samples": 1,
        "crashes": 1,
        "families": 1,
        "feedback": 1,
        "files": 1,
        "imports": 1,
        "journal": 1,
        "logs": 2,
        "meters": 1,
        "purges": 1,
        "quarantine": 1,
        "sessions": 1,
        "stale_groups": 1,
    }
    assert list(all_of(Meter).values_list("period", flat=True)) == [f"{timezone.now():%Y-%m-%d}"]
    assert list(JournalEntry.objects.values_list("request_id", flat=True)) == ["stays"]
    assert list(all_of(QuarantinedRequest).values_list("request_id", flat=True)) == ["stays"]
    assert [row.request_id for row in all_of(AnswerSample)] == ["stays"]
    said = all_of(MetricEvent).order_by("pk").values_list("request_id", flat=True)
    assert list(said) == ["stays", "young"]  # what is still to be counted is kept
    assert list(EngineCrash.objects.values_list("epoch", flat=True)) == [2]
    running, closed = EngineJournal.objects.order_by("pk")
    assert abs(running.complete_since - (timezone.now() - timedelta(days=30))) < timedelta(hours=1)
    assert closed.closed_at is not None  # the older one went
    assert list(Session.objects.values_list("session_key", flat=True)) == ["live"]
    assert list(all_of(TokenFamily).values_list("public_id", flat=True)) == ["stays"]
    assert set(change_stamps()) >= {"responses:tenant:2", "routes"}
    assert "responses:tenant:1" not in change_stamps()
    kept = set(all_of(UploadedFile).values_list("file_id", flat=True))
    assert len(kept) == 2
    assert read.file_id in kept
    assert [path.name for path in (places / "models" / "tiny").glob("*/")] == ["1"]
    assert sorted(path.name for path in (places / "logs").iterdir()) == [
        "agent.log.1",
        "engine-known.log",
        "server.log",
    ]


@pytest.mark.django_db(transaction=True)
def test_the_bytes_of_a_file_go_with_its_row(places: Path) -> None:
    gone = file_stored(places, age_days=31)
    kept = file_stored(places, age_days=29)
    prune()
    assert [path.name for path in (places / "files").iterdir()] == [kept.file_id]
    assert not all_of(UploadedFile).filter(pk=gone.pk).exists()


def test_files_are_kept_for_ever_unless_told_otherwise(places: Path, settings: Any) -> None:
    settings.FILES_KEEP_DAYS = settings.FEEDBACK_KEEP_DAYS = 0
    MetricEventFactory(created_at=timezone.now() - timedelta(days=4000))
    file_stored(places, age_days=4000)
    assert prune() == NOTHING.format(verb="removed")
    assert (all_of(UploadedFile).count(), all_of(MetricEvent).count()) == (1, 1)
    assert not all_of(AuditEvent).exists()


def test_an_import_that_runs_is_let_be(places: Path) -> None:
    partial = places / "models" / "tiny" / ".1.partial"
    partial.mkdir(parents=True)
    with import_lock(partial.parent):
        assert prune() == NOTHING.format(verb="removed")
    assert partial.exists()


def test_what_one_room_cannot_do_stops_no_other(places: Path, settings: Any) -> None:
    Meter.objects.create(scope="tenant:1", period="2020-01-01")
    Session.objects.create(session_key="gone", expire_date=timezone.now() - timedelta(days=1))
    settings.MODELS_DIR = None
    with pytest.raises(CommandError, match=r"^imports: TypeError: "):
        prune()
    assert not all_of(Meter).exists()
    assert not Session.objects.exists()


@pytest.mark.parametrize("days", ["0", "-1", "soon", "40000"])
def test_a_bad_number_of_days_changes_nothing(places: Path, days: str) -> None:
    populate(places)
    before = state(places)
    with pytest.raises(CommandError, match=r"^--keep-days: "):
        prune(f"--keep-days={days}")
    assert state(places) == before


def test_beat_asks_for_it_every_day() -> None:
    entry = current_app.conf.beat_schedule["console.prune"]
    current_app.loader.import_default_modules()  # as a worker does when it starts
    Meter.objects.create(scope="tenant:1", period="2020-01-01")
    current_app.tasks[entry["task"]]()
    assert not all_of(Meter).exists()
    assert all_of(AuditEvent).get().changes == {"keep_days": 30, "meters": 1}
