"""From an engine's journal to the database: each record once, whatever is killed in between, and
nothing left on the disk that is not needed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import DatabaseError
from django.utils import timezone

from apps.engines import journals, services
from apps.engines.journals import JournalFiles
from apps.engines.models import EngineJournal, JournalEntry
from apps.engines.services import journals_read, requests_running
from engine_service.journal import Journal, LiveRequest
from engine_service.protocol.journal import live_path, log_path
from tests.factories import EngineProcessFactory

pytestmark = pytest.mark.django_db

OPENED_NS = 1_800_000_000 * 1_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def name() -> str:
    process = EngineProcessFactory(name="m-0", epoch=4)
    return f"e{process.pk}-4-{OPENED_NS:x}"


@pytest.fixture
def journal(directory: Path, name: str) -> Iterator[Journal]:
    made = open_journal(directory, name)
    yield made
    made.close()


def open_journal(directory: Path, name: str, **options: int) -> Journal:
    return Journal(directory, name, epoch=4, capacity=16, **options)


def begin(journal: Journal, key: int) -> LiveRequest:
    entry = journal.begin(key=key, request_id=f"r{key}", n_prompt_tokens=10)
    entry.note(n_cached_tokens=8, n_completion_tokens=key, step=40, waited_s=0.25)
    return entry


def run(journal: Journal, *keys: int) -> None:
    for key in keys:
        journal.end(
            begin(journal, key), n_cached_tokens=8, n_completion_tokens=key, finish_reason="stop"
        )
        journal.flush()


def read(directory: Path) -> int:
    return journals_read(directory, now=timezone.now())


def entries() -> list[tuple[int, str]]:
    return list(JournalEntry.objects.order_by("key").values_list("key", "error_code"))


def files(directory: Path) -> list[str]:
    return sorted(path.name.split(".", 1)[1] for path in directory.iterdir())


def test_a_record_is_an_entry(directory: Path, name: str, journal: Journal) -> None:
    before = timezone.now()
    run(journal, 12)
    assert read(directory) == 1
    (entry,) = JournalEntry.objects.select_related("journal")
    assert (entry.journal.name, entry.journal.engine_name, entry.journal.epoch) == (name, "m-0", 4)
    assert entry.journal.complete_since == datetime.fromtimestamp(1_800_000_000, UTC)
    assert (entry.key, entry.request_id, entry.finish_reason) == (12, "r12", "stop")
    counts = (entry.n_prompt_tokens, entry.n_cached_tokens, entry.n_completion_tokens)
    assert counts == (10, 8, 12)
    assert (entry.first_step, entry.last_step, entry.waited_ms) == (40, 40, 250.0)
    assert entry.first_token_at is not None
    assert before <= entry.started_at <= entry.first_token_at <= entry.ended_at <= entry.read_at


def test_each_is_read_once(directory: Path, journal: Journal) -> None:
    run(journal, 1, 2)
    assert [read(directory), read(directory)] == [2, 0]
    begin(journal, 3)  # runs
    run(journal, 4)
    assert [read(directory), read(directory)] == [1, 0]
    assert entries() == [(1, ""), (2, ""), (4, "")]


def test_what_runs_is_known_of_engines_that_live(
    directory: Path, name: str, journal: Journal
) -> None:
    assert requests_running(directory) == frozenset()
    begin(journal, 1)
    begin(journal, 2)
    run(journal, 3)
    (directory / f"e0-1-{OPENED_NS:x}.live").mkdir()  # cannot be read, and hides no other
    assert requests_running(directory) == {"r1", "r2"}


def test_many_are_read_in_parts(
    directory: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_ENTRIES_AT_A_TIME", 2)
    monkeypatch.setattr(services, "_ENTRIES_AT_MOST", 4)
    run(journal, *range(1, 8))
    assert read(directory) == 4
    assert EngineJournal.objects.get().read_at is None  # there is more that it does not have
    assert [read(directory), read(directory)] == [3, 0]
    assert EngineJournal.objects.get().read_at is not None
    assert [key for key, _ in entries()] == list(range(1, 8))


def test_what_was_read_goes(directory: Path, name: str) -> None:
    journal = open_journal(directory, name, max_log_bytes=100)
    run(journal, 1, 2, 3)
    assert files(directory) == ["000001.log", "000002.log", "000003.log", "live"]
    assert read(directory) == 3
    assert files(directory) == ["000003.log", "live"]
    run(journal, 4)
    begin(journal, 5)
    journal.close()
    assert read(directory) == 2
    assert files(directory) == []
    assert entries() == [(1, ""), (2, ""), (3, ""), (4, ""), (5, "engine_died")]
    assert EngineJournal.objects.get().closed_at is not None


def test_a_request_in_table_and_log_is_one(directory: Path, name: str) -> None:
    journal = open_journal(directory, name)
    begin(journal, 1)
    run(journal, 2)
    table = live_path(directory, name)
    left = table.read_bytes()
    second = begin(journal, 3)
    both = table.read_bytes()
    journal.end(second, n_cached_tokens=8, n_completion_tokens=3, finish_reason="stop")
    journal.close()
    assert left != both
    table.write_bytes(both)  # as if killed between its record and the freeing of its slot
    assert read(directory) == 3
    assert entries() == [(1, "engine_died"), (2, ""), (3, "")]


def test_a_torn_tail_is_dropped(directory: Path, name: str) -> None:
    journal = open_journal(directory, name)
    run(journal, 1, 2)
    journal.close()
    log = log_path(directory, name, number=1)
    log.write_bytes(log.read_bytes()[:-3])
    assert read(directory) == 1
    assert entries() == [(1, "")]
    assert files(directory) == []


def test_a_torn_tail_of_one_that_runs_is_waited_for(
    directory: Path, name: str, journal: Journal
) -> None:
    run(journal, 1, 2)
    log = log_path(directory, name, number=1)
    whole = log.read_bytes()
    log.write_bytes(whole[:-3])
    assert read(directory) == 1
    log.write_bytes(whole)
    assert read(directory) == 1
    assert entries() == [(1, ""), (2, "")]


def test_after_a_loss_it_is_complete_from_then_on(directory: Path, name: str) -> None:
    """Its engine dropped a log that nobody read in time, and another is damaged."""
    journal = open_journal(directory, name, max_log_bytes=100, max_logs=3)
    run(journal, 1)
    assert read(directory) == 1
    opened_at = EngineJournal.objects.get().complete_since
    run(journal, 2, 3, 4)
    assert files(directory) == ["000002.log", "000003.log", "000004.log", "live"]
    now = timezone.now()
    assert journals_read(directory, now=now) == 3
    assert opened_at != now
    assert EngineJournal.objects.get().complete_since == now
    run(journal, 5, 6)
    log = log_path(directory, name, number=5)
    log.write_bytes(log.read_bytes()[:-3])
    later = now + timedelta(seconds=10)
    assert journals_read(directory, now=later) == 1
    assert EngineJournal.objects.get().complete_since == later
    run(journal, 7)
    journal.close()
    assert journals_read(directory, now=later + timedelta(seconds=10)) == 1
    assert EngineJournal.objects.get().complete_since == later
    assert [key for key, _ in entries()] == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("is_over", [True, False])
def test_what_a_machine_that_went_down_has_of_a_journal_is_not_all(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    monkeypatch.setattr(journals, "_machine_started_at", timezone.now)
    monkeypatch.setattr(journals, "_NS", 2 * 1_000_000_000)  # opened in the past
    journal = open_journal(directory, name)
    run(journal, 1)
    if is_over:
        journal.close()
    now = timezone.now()
    assert journals_read(directory, now=now) == 1
    found = EngineJournal.objects.get()
    assert (found.closed_at == now, found.complete_since == now) == (is_over, is_over)
    if not is_over:
        journal.close()


def test_a_run_that_fails_midway_is_made_again(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_ENTRIES_AT_A_TIME", 2)
    journal = open_journal(directory, name)
    run(journal, 1, 2, 3)
    begin(journal, 4)
    journal.close()
    update = services._journal_update
    n_calls = 0

    def away(row: EngineJournal, **fields: object) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise DatabaseError("away")
        update(row, **fields)

    monkeypatch.setattr(services, "_journal_update", away)
    with pytest.raises(DatabaseError):
        read(directory)
    assert [key for key, _ in entries()] == [1, 2]
    assert "live" in files(directory)
    assert read(directory) == 2
    assert entries() == [(1, ""), (2, ""), (3, ""), (4, "engine_died")]
    assert files(directory) == []


def test_files_that_outlived_their_reading_go(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(directory, name)
    run(journal, 1)
    journal.close()
    with monkeypatch.context() as patch:
        patch.setattr(JournalFiles, "remove", lambda files: None)  # killed just before
        assert read(directory) == 1
    assert read(directory) == 0
    assert (entries(), files(directory)) == ([(1, "")], [])


def test_one_that_cannot_be_read_holds_up_no_other(
    directory: Path, name: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"e0-1-{OPENED_NS:x}"
    live_path(directory, other).mkdir()
    run(journal, 1)
    assert read(directory) == 1
    assert other in caplog.text


@pytest.mark.parametrize(
    "fields", [{"key": 1, "request_id": "a\0b"}, {"key": 2**63, "request_id": "r"}]
)
def test_a_record_that_cannot_be_is_left_out(
    directory: Path, name: str, fields: dict[str, int | str], caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(directory, name)
    journal.begin(n_prompt_tokens=10, **fields)  # type: ignore[arg-type]
    run(journal, 7)
    journal.close()
    assert read(directory) == 1
    assert entries() == [(7, "")]
    assert "cannot be" in caplog.text


def test_what_is_no_journal_is_left(directory: Path) -> None:
    assert read(directory) == 0  # not even a directory
    directory.mkdir()
    (directory / "engine.live").write_text("of an engine that was started by hand")
    assert read(directory) == 0
    assert files(directory) == ["live"]
