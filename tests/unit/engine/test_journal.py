"""The engine's journal as files: what survives a kill, a cut write, a full disk, a flood."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_service.errors import Overloaded
from engine_service.journal import Journal, JournalError, LiveRequest
from engine_service.protocol.journal import (
    ENGINE_DIED,
    SLOT_BYTES,
    JournalRecord,
    encode_record,
    is_writer_alive,
    live_path,
    log_numbers,
    log_path,
    read_live,
    read_log,
)
from tests.waiting import wait_until

NAME = "e3-7-abc"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def make(directory: Path, *, capacity: int = 4, **options: int) -> Journal:
    return Journal(directory, NAME, epoch=7, capacity=capacity, clock=Clock(), **options)


@pytest.fixture
def journal(directory: Path) -> Iterator[Journal]:
    found = make(directory)
    yield found
    found.close()


def begin(journal: Journal, key: int = 1, request_id: str = "r") -> LiveRequest:
    return journal.begin(key=key, request_id=f"{request_id}{key}", n_prompt_tokens=10)


def end(journal: Journal, live: LiveRequest, *, n: int = 3, **how: str) -> None:
    how = how or {"finish_reason": "stop"}
    journal.end(live, n_cached_tokens=2, n_completion_tokens=n, **how)


def records(directory: Path) -> list[JournalRecord]:
    return [
        record
        for number in log_numbers(directory, NAME)
        for record in read_log(log_path(directory, NAME, number=number)).records
    ]


def live(directory: Path) -> list[tuple[int, str, int]]:
    found = read_live(live_path(directory, NAME), epoch=7)
    return [(each.key, each.request_id, each.n_completion_tokens) for each in found]


def test_a_request_from_its_begin_to_its_record(directory: Path, journal: Journal) -> None:
    entry = begin(journal)  # at 1001
    entry.note(n_cached_tokens=2, n_completion_tokens=1, step=40, waited_s=0.25)  # at 1002
    entry.note(n_cached_tokens=2, n_completion_tokens=5, step=44, waited_s=0.25)
    (seen,) = read_live(live_path(directory, NAME), epoch=7)
    assert seen == JournalRecord(
        key=1, request_id="r1", epoch=7, n_prompt_tokens=10, n_cached_tokens=2,
        n_completion_tokens=5, error_code=ENGINE_DIED, first_step=40, last_step=44, waited_s=0.25,
        started_at=1001.0, first_token_at=1002.0, ended_at=1003.0,
    )  # fmt: skip
    assert records(directory) == []
    end(journal, entry, n=6)  # at 1004
    assert (records(directory), live(directory)) == ([], [(1, "r1", 6)])
    assert journal.flush()
    assert live(directory) == []
    assert records(directory) == [
        JournalRecord(
            key=1, request_id="r1", epoch=7, n_prompt_tokens=10, n_cached_tokens=2,
            n_completion_tokens=6, finish_reason="stop", first_step=40, last_step=44,
            waited_s=0.25, started_at=1001.0, first_token_at=1002.0, ended_at=1004.0,
        )
    ]  # fmt: skip


def test_a_request_without_a_token(directory: Path, journal: Journal) -> None:
    end(journal, begin(journal), n=0, error_code="engine_error")
    journal.flush()
    (record,) = records(directory)
    assert (record.error_code, record.finish_reason) == ("engine_error", "")
    assert (record.first_token_at, record.first_step, record.last_step) == (None, 0, 0)


def test_only_its_user_can_read_it(directory: Path, journal: Journal) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_directory_that_is_open_to_others_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(JournalError, match="mode 0700"):
        make(directory)
    assert list(directory.iterdir()) == []


def test_a_place_that_is_no_directory_is_refused(directory: Path) -> None:
    directory.write_text("")
    with pytest.raises(JournalError, match="cannot write the journal"):
        make(directory)


def test_a_slot_is_used_again_and_a_full_table_refuses(directory: Path, journal: Journal) -> None:
    entries = [begin(journal, key) for key in range(1, 5)]
    with pytest.raises(Overloaded, match="full"):
        begin(journal, 5)
    end(journal, entries[1])
    journal.flush()
    assert begin(journal, 6).slot == entries[1].slot
    journal.drop(entries[0])
    assert [key for key, _, _ in live(directory)] == [6, 3, 4]


@pytest.mark.parametrize("n_cut", [1, 8, 30])
def test_a_torn_tail_ends_the_log(directory: Path, journal: Journal, n_cut: int) -> None:
    for key in (1, 2):
        end(journal, begin(journal, key))
        journal.flush()
    path = log_path(directory, NAME, number=1)
    whole = read_log(path)
    assert (len(whole.records), whole.is_whole) == (2, True)
    path.write_bytes(path.read_bytes()[:-n_cut])
    part = read_log(path)
    assert [record.key for record in part.records] == [1]
    assert (part.is_whole, part.end) == (False, len(encode_record(part.records[0])))


@pytest.mark.parametrize("at", [0, 4, 20])
def test_a_changed_byte_is_detected(directory: Path, journal: Journal, at: int) -> None:
    for key in (1, 2):
        end(journal, begin(journal, key))
    journal.flush()
    path = log_path(directory, NAME, number=1)
    data = bytearray(path.read_bytes())
    data[read_log(path, limit=1).end + at] ^= 0xFF
    path.write_bytes(data)
    part = read_log(path)
    assert ([record.key for record in part.records], part.is_whole) == ([1], False)


def test_reading_goes_on_where_it_ended(directory: Path, journal: Journal) -> None:
    for key in (1, 2, 3):
        end(journal, begin(journal, key))
    journal.flush()
    path = log_path(directory, NAME, number=1)
    first = read_log(path, limit=2)
    rest = read_log(path, start=first.end)
    assert [[r.key for r in part.records] for part in (first, rest)] == [[1, 2], [3]]
    assert (first.is_whole, rest.is_whole) == (False, True)
    assert read_log(path, start=rest.end) == type(rest)(records=(), end=rest.end, is_whole=True)


def test_a_field_of_a_later_version_is_skipped(tmp_path: Path) -> None:
    class Later(JournalRecord, frozen=True, kw_only=True):
        mood: str = "good"

    record = Later(
        key=1, request_id="r", epoch=1, n_prompt_tokens=1, started_at=1.0, ended_at=2.0, mood="?"
    )
    path = tmp_path / "log"
    path.write_bytes(encode_record(record))
    assert [found.request_id for found in read_log(path).records] == ["r"]


def test_logs_are_bounded_in_size_and_number(directory: Path) -> None:
    journal = make(directory, max_log_bytes=100, max_logs=3)
    for key in range(1, 9):
        end(journal, begin(journal, key))
        journal.flush()
    assert log_numbers(directory, NAME) == [6, 7, 8]  # one record each: the oldest were dropped
    assert [record.key for record in records(directory)] == [6, 7, 8]
    journal.close()


def test_a_full_disk_refuses_new_requests_and_loses_no_record(
    directory: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = begin(journal, 1), begin(journal, 2)
    write = os.pwrite

    def half(file: int, data: bytes, at: int) -> int:
        return write(file, bytes(data)[: len(data) // 2], at)

    def full(file: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", half)
    end(journal, first)
    assert not journal.flush()
    assert records(directory) == []
    assert {key for key, _, _ in live(directory)} == {1, 2}  # a kill now would lose neither
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Overloaded, match="No space left on device"):
        begin(journal, 3)
    end(journal, second)
    assert not journal.flush()
    monkeypatch.setattr(os, "pwrite", write)
    entry = begin(journal, 3)
    assert [record.key for record in records(directory)] == [1, 2]
    assert [key for key, _, _ in live(directory)] == [3]
    journal.drop(entry)


def test_the_lock_says_whether_its_writer_lives(directory: Path) -> None:
    journal = make(directory)
    assert is_writer_alive(directory, NAME)
    journal.close()
    assert not is_writer_alive(directory, NAME)


_WRITER = """
import sys
from pathlib import Path
from engine_service.journal import Journal
journal = Journal(Path(sys.argv[1]), sys.argv[2], epoch=7, capacity=64)
entries = [journal.begin(key=key, request_id=f"r{key}", n_prompt_tokens=5) for key in range(32)]
for step in range(1, 10_000_000):
    for entry in entries:
        entry.note(n_cached_tokens=0, n_completion_tokens=step, step=step, waited_s=0.0)
    if step % 50 == 0:
        key = step + 1000
        done = journal.begin(key=key, request_id=f"done{key}", n_prompt_tokens=5)
        journal.end(done, n_cached_tokens=0, n_completion_tokens=step, finish_reason="stop")
        journal.flush()
    print(step, flush=True)
"""


def test_a_killed_writer_leaves_all_that_it_had_said(directory: Path) -> None:
    """It says each step on a pipe after noting it, as the engine sends frames."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory), NAME], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 500:
                break
        writer.send_signal(signal.SIGKILL)
        said = int(([line, *writer.stdout.read().split()])[-1])
    wait_until("the lock to be free", lambda: not is_writer_alive(directory, NAME))
    found = [each for each in live(directory) if each[1].startswith("r")]
    assert len(found) == 32
    assert {n - said for _, _, n in found} <= {0, 1}  # at most the step that nobody was told of
    log = read_log(log_path(directory, NAME, number=1))
    assert log.is_whole
    assert [r.n_completion_tokens for r in log.records][: said // 50] == [
        50 * (n + 1) for n in range(said // 50)
    ]


def test_nonsense_in_the_table_is_not_believed(directory: Path, journal: Journal) -> None:
    begin(journal, 1)
    path = live_path(directory, NAME)
    data = bytearray(path.read_bytes())
    at = 2 * SLOT_BYTES
    data[at : at + 8] = (10_000).to_bytes(8, "little")  # longer than an id can be
    data[at + SLOT_BYTES : at + SLOT_BYTES + 8] = (2).to_bytes(8, "little")
    data[at + SLOT_BYTES + 88 : at + SLOT_BYTES + 90] = b"\xff\xfe"
    path.with_suffix(".copy").write_bytes(data)
    assert [r.key for r in read_live(path.with_suffix(".copy"), epoch=7)] == [1]
