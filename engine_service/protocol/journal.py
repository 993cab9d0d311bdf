"""What an engine leaves in files about the requests that it ran, and how that is read.

One start of an engine writes ``<name>.<number>.log`` files, one after another, and ``<name>.live``.

A log is a sequence of frames: length and CRC-32 of the body, little-endian, then one msgpack map,
a ``JournalRecord``. It only ever grows. What does not match its length or its sum is the tail of a
write that was cut off, and ends the log.

The live file is a table of slots of fixed size, one for each request that runs, mapped into memory
by the engine: eleven unsigned 64-bit numbers and the request's id. Each number is stored by one
aligned store, the one that says that a slot is in use last; a process that is killed leaves each
number whole, in the page cache. The engine locks the file (``flock``) as long as it lives.
"""

import fcntl
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec

ENGINE_DIED: Final = "engine_died"
CONNECTION_LOST: Final = "connection_lost"

RECORD_HEADER: Final = struct.Struct("<II")
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ID_BYTES: Final = 512
WORD_BYTES: Final = 8


class Word(IntEnum):
    """The numbers of a slot; times in microseconds since 1970. ID_BYTES is 0 in a free slot."""

    ID_BYTES = 0
    KEY = 1
    N_PROMPT = 2
    N_CACHED = 3
    N_COMPLETION = 4
    FIRST_STEP = 5
    LAST_STEP = 6
    STARTED_US = 7
    FIRST_TOKEN_US = 8
    LAST_TOKEN_US = 9
    WAITED_US = 10


SLOT_BYTES: Final = len(Word) * WORD_BYTES + MAX_ID_BYTES
SLOT_WORDS: Final = SLOT_BYTES // WORD_BYTES


class JournalRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request ended in the engine. Counts are of all of its answers, the prompt once.

    key: tells one request of this start of the engine from another; an id may come again.
    finish_reason: "stop", "length" or "abort"; empty where ``error_code`` says why there is none.
    With "abort" an error_code of CONNECTION_LOST says that nobody asked for the end: the client's
    connection was gone. first_step, last_step: those that made its first and its last token, as
    ``EngineStats.n_steps`` counts them; 0 where it made none. waited_s: until it was first
    computed. Times are seconds since 1970.

    Fields that a reader does not know are skipped, so that a journal outlives an upgrade.
    """

    key: int
    request_id: str
    epoch: int
    n_prompt_tokens: int
    n_cached_tokens: int = 0
    n_completion_tokens: int = 0
    finish_reason: str = ""
    error_code: str = ""
    first_step: int = 0
    last_step: int = 0
    waited_s: float = 0.0
    started_at: float
    first_token_at: float | None = None
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """Records from a log. end: the byte after the last of them. is_whole: nothing follows it."""

    records: tuple[JournalRecord, ...]
    end: int
    is_whole: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(JournalRecord)


def encode_record(record: JournalRecord) -> bytes:
    body = _encoder.encode(record)
    return RECORD_HEADER.pack(len(body), zlib.crc32(body)) + body


def log_path(directory: Path, name: str, *, number: int) -> Path:
    return directory / f"{name}.{number:06d}.log"


def live_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.live"


def read_log(path: Path, *, start: int = 0, limit: int = sys.maxsize) -> LogPart:
    """Read up to ``limit`` records from the byte ``start`` on, as far as they are whole.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    records: list[JournalRecord] = []
    at = 0
    while len(records) < limit and (found := _record_at(data, at)) is not None:
        record, at = found
        records.append(record)
    return LogPart(records=tuple(records), end=start + at, is_whole=at == len(data))


def _record_at(data: bytes, at: int) -> tuple[JournalRecord, int] | None:
    """Return the record there and where the next begins; None if there is no whole one."""
    begin = at + RECORD_HEADER.size
    if begin > len(data):
        return None
    length, checksum = RECORD_HEADER.unpack_from(data, at)
    end = begin + length
    if not 0 < length <= MAX_RECORD_BYTES or end > len(data):
        return None
    body = data[begin:end]
    if zlib.crc32(body) != checksum:
        return None
    try:
        return _decoder.decode(body), end
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_live(path: Path, *, epoch: int) -> tuple[JournalRecord, ...]:
    """Return what an engine that is dead had made of the requests that it did not end.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    slots = range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES)
    found = (_live_record(data[at : at + SLOT_BYTES], epoch=epoch) for at in slots)
    return tuple(record for record in found if record is not None)


def record_of(
    words: "memoryview[int]",
    *,
    request_id: str,
    epoch: int,
    ended_at: float,
    finish_reason: str = "",
    error_code: str = "",
) -> JournalRecord:
    """Return the record of a slot's numbers, shaped (SLOT_WORDS,)."""
    return JournalRecord(
        key=words[Word.KEY],
        request_id=request_id,
        epoch=epoch,
        n_prompt_tokens=words[Word.N_PROMPT],
        n_cached_tokens=words[Word.N_CACHED],
        n_completion_tokens=words[Word.N_COMPLETION],
        finish_reason=finish_reason,
        error_code=error_code,
        first_step=words[Word.FIRST_STEP],
        last_step=words[Word.LAST_STEP],
        waited_s=words[Word.WAITED_US] / 1e6,
        started_at=words[Word.STARTED_US] / 1e6,
        first_token_at=words[Word.FIRST_TOKEN_US] / 1e6 or None,
        ended_at=ended_at,
    )


def _live_record(slot: bytes, *, epoch: int) -> JournalRecord | None:
    """None of a free slot, and of one that no process of ours left so."""
    words = memoryview(slot).cast("Q")
    if not 0 < words[Word.ID_BYTES] <= MAX_ID_BYTES:
        return None
    begin = len(Word) * WORD_BYTES
    try:
        request_id = slot[begin : begin + words[Word.ID_BYTES]].decode()
    except UnicodeDecodeError:
        return None
    last_us = words[Word.LAST_TOKEN_US] or words[Word.STARTED_US]
    return record_of(
        words,
        request_id=request_id,
        epoch=epoch,
        ended_at=last_us / 1e6,
        error_code=ENGINE_DIED,
    )


def is_writer_alive(directory: Path, name: str) -> bool:
    """Return whether the engine that writes this journal still runs.

    Raises:
        OSError: there is no such journal, or it cannot be opened.
    """
    with live_path(directory, name).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def log_numbers(directory: Path, name: str) -> list[int]:
    """Return the numbers of a journal's logs that are there, the oldest first."""
    return sorted(_numbers(directory, name))


def _numbers(directory: Path, name: str) -> Iterator[int]:
    for path in directory.glob(f"{name}.*.log"):
        number = path.name.removeprefix(f"{name}.").removesuffix(".log")
        if number.isdecimal():
            yield int(number)
