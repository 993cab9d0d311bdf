"""The engine's own record of what it ran, for settling after a crash: one record for each request
that has ended, and how far each that runs has come.

All of it is called on the event loop, before the frames that it speaks of are sent. Writes go to
the page cache, which outlives this process however that ends; a machine that loses power may lose
the last seconds, and nothing here waits for a disk.
"""

import errno
import fcntl
import logging
import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engine_service.errors import EngineError, Overloaded
from engine_service.protocol.journal import (
    MAX_ID_BYTES,
    SLOT_BYTES,
    SLOT_WORDS,
    WORD_BYTES,
    Word,
    encode_record,
    live_path,
    log_path,
    record_of,
)

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
MAX_LOGS: Final = 32
_RETRY_AFTER_S: Final = 5.0
_ID_AT: Final = len(Word) * WORD_BYTES

logger = logging.getLogger(__name__)


class JournalError(EngineError):
    """The journal cannot be made where it was asked for."""


class LiveRequest:
    """A slot of the live table. Its numbers are nowhere else."""

    __slots__ = ("_request_id", "_table", "slot", "words")

    def __init__(self, table: "_LiveTable", *, slot: int, request_id: str) -> None:
        self.slot = slot
        self._table = table
        self._request_id = request_id
        self.words = table.words_of(slot)

    @property
    def request_id(self) -> str:
        return self._request_id

    def note(
        self, *, n_cached_tokens: int, n_completion_tokens: int, step: int, waited_s: float
    ) -> None:
        """Say how far the request has come; before anybody is shown its new tokens."""
        words = self.words
        now_us = self._table.now_us()
        if words[Word.FIRST_TOKEN_US] == 0:
            words[Word.WAITED_US] = int(waited_s * 1e6)
            words[Word.FIRST_STEP] = step
            words[Word.FIRST_TOKEN_US] = now_us
        words[Word.LAST_STEP] = step
        words[Word.LAST_TOKEN_US] = now_us
        self.count(n_cached_tokens=n_cached_tokens, n_completion_tokens=n_completion_tokens)

    def count(self, *, n_cached_tokens: int, n_completion_tokens: int) -> None:
        self.words[Word.N_CACHED] = n_cached_tokens
        self.words[Word.N_COMPLETION] = n_completion_tokens


class _LiveTable:
    """The mapped file of slots; the lock on it says that this process lives.

    Its blocks are allocated before it is mapped: a store to a hole on a full disk would be a
    SIGBUS.
    """

    def __init__(self, path: Path, *, capacity: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        draft = path.with_suffix(".draft")
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(file, 0, capacity * SLOT_BYTES)
            self._map = mmap.mmap(file, capacity * SLOT_BYTES)
            draft.rename(path)  # nobody finds it without its lock
        except OSError:
            os.close(file)
            draft.unlink(missing_ok=True)
            raise
        self._file = file
        self._words = memoryview(self._map).cast("Q")
        self._free = list(range(capacity - 1, -1, -1))

    def now_us(self) -> int:
        return int(self._clock() * 1e6)

    def words_of(self, slot: int) -> "memoryview[int]":
        return self._words[slot * SLOT_WORDS : (slot + 1) * SLOT_WORDS]

    def take(self, *, key: int, request_id: str, n_prompt_tokens: int) -> LiveRequest:
        name = request_id.encode()
        if len(name) > MAX_ID_BYTES:
            raise EngineError(f"the request id has {len(name)} bytes, over {MAX_ID_BYTES}")
        if not self._free:
            raise Overloaded("the journal's table is full", retry_after_s=_RETRY_AFTER_S)
        live = LiveRequest(self, slot=self._free.pop(), request_id=request_id)
        words = live.words
        for word in Word:
            words[word] = 0
        words[Word.KEY] = key
        words[Word.N_PROMPT] = n_prompt_tokens
        words[Word.STARTED_US] = self.now_us()
        at = live.slot * SLOT_BYTES + _ID_AT
        self._map[at : at + len(name)] = name
        words[Word.ID_BYTES] = len(name)
        return live

    def free(self, live: LiveRequest) -> None:
        live.words[Word.ID_BYTES] = 0
        self._free.append(live.slot)

    def close(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)  # the map has a descriptor of its own
        os.close(self._file)


class Journal:
    """The journal of one start of an engine.

    While it cannot be written, as on a full disk, ``begin`` refuses new requests: fewer answers are
    better than ones that nobody could prove. What runs goes on, its records are kept, as many as
    there were requests, and written once that is possible again.

    directory: made with mode 0700. name: unlike any other's in it. capacity: most requests at a
    time. clock: seconds since 1970.

    Raises:
        JournalError: the files cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        epoch: int,
        capacity: int,
        clock: Callable[[], float] = time.time,
        max_log_bytes: int = MAX_LOG_BYTES,
        max_logs: int = MAX_LOGS,
    ) -> None:
        self._directory, self._name, self._epoch = directory, name, epoch
        self._clock = clock
        self._max_log_bytes, self._max_logs = max_log_bytes, max_logs
        self._number, self._log, self._n_bytes = 0, -1, 0
        self._ended: list[LiveRequest] = []
        self._unwritten = bytearray()
        self._failure = ""
        try:
            _check_directory(directory)
            self._table = _LiveTable(live_path(directory, name), capacity=capacity, clock=clock)
            self._next_log()
        except OSError as error:
            raise JournalError(f"cannot write the journal in {directory}: {error}") from error

    def begin(self, *, key: int, request_id: str, n_prompt_tokens: int) -> LiveRequest:
        """Take a place for a request that is about to run.

        Raises:
            Overloaded: there is none, or the journal cannot be written.
        """
        if self._failure and not self.flush():
            raise Overloaded(
                f"the engine's journal cannot be written: {self._failure}",
                retry_after_s=_RETRY_AFTER_S,
            )
        return self._table.take(key=key, request_id=request_id, n_prompt_tokens=n_prompt_tokens)

    def drop(self, live: LiveRequest) -> None:
        """Give back the place of a request that did not begin."""
        self._table.free(live)

    def end(
        self,
        live: LiveRequest,
        *,
        n_cached_tokens: int,
        n_completion_tokens: int,
        finish_reason: str = "",
        error_code: str = "",
    ) -> None:
        """Add a request's record; ``flush`` before its client is told."""
        live.count(n_cached_tokens=n_cached_tokens, n_completion_tokens=n_completion_tokens)
        record = record_of(
            live.words,
            request_id=live.request_id,
            epoch=self._epoch,
            ended_at=self._clock(),
            finish_reason=finish_reason,
            error_code=error_code,
        )
        self._unwritten += encode_record(record)
        self._ended.append(live)

    def flush(self) -> bool:
        """Write what was added, in one call; return whether all of it is in the log."""
        if not self._unwritten:
            return True
        try:
            if self._n_bytes >= self._max_log_bytes:
                self._next_log()
            self._write()
        except OSError as error:
            if not self._failure:
                logger.critical(
                    "the journal cannot be written, new requests are refused: %s", error
                )
            self._failure = str(error)
            return False
        if self._failure:
            logger.warning("the journal can be written again")
            self._failure = ""
        # Until now a request is in the table; from the write on it was in both, under one key.
        for live in self._ended:
            self._table.free(live)
        self._ended.clear()
        return True

    def close(self) -> None:
        """Write what can be written, and let go of the lock."""
        self.flush()
        os.close(self._log)
        self._table.close()

    def _write(self) -> None:
        # At a fixed place, so that what a full disk cut off is written over the next time.
        n_written = os.pwrite(self._log, self._unwritten, self._n_bytes)
        if n_written < len(self._unwritten):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._n_bytes += n_written
        self._unwritten.clear()

    def _next_log(self) -> None:
        path = log_path(self._directory, self._name, number=self._number + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        log = os.open(path, flags, 0o600)
        if self._log >= 0:
            os.close(self._log)
        self._number, self._log, self._n_bytes = self._number + 1, log, 0
        oldest = log_path(self._directory, self._name, number=self._number - self._max_logs)
        if oldest.exists():
            logger.error("%s was not read in time and is dropped", oldest)
            oldest.unlink(missing_ok=True)


def _check_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError("it must belong to this user, and be closed to all others (mode 0700)")
