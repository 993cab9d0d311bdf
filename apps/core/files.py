"""Files below VAR that several processes know of: locks, logs, secrets."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

_LOG_MOST_BYTES: Final = 5 * 1024 * 1024
_LOCK_POLL_S: Final = 0.1


class LockHeld(Exception):
    """Another process holds the lock; the message names it and says what to do."""


@contextlib.contextmanager
def var_lock(file: Path, *, holder: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the system drops it with its holder, however that ends.

    Raises:
        LockHeld: another process holds it, ``wait_s`` later still.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as handle:
        if not _lock_taken(handle, wait_s=wait_s):
            handle.seek(0)
            pid = handle.read().strip() or "unknown"
            raise LockHeld(
                f"another {holder} (pid {pid}) already works in {file.parent}: "
                "stop it first, or set VAR to another directory"
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def lock_holder(file: Path) -> str | None:
    """Return the pid of who holds a lock file, None when nobody does; leaves it as it is."""
    try:
        with file.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read().strip() or "unknown"
    except FileNotFoundError:
        pass
    return None


def _lock_taken(handle: IO[str], *, wait_s: float) -> bool:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def log_open(file: Path) -> int:
    """Return a descriptor that appends; a log that has grown large is put aside first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > _LOG_MOST_BYTES:
            file.replace(file.with_suffix(".log.1"))
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def log_tail(file: Path, *, n_lines: int, n_bytes: int = 64 * 1024) -> list[str]:
    """Return the last lines of a log, reading a bounded part of it; nothing when it is absent."""
    try:
        with file.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - n_bytes))
            data = handle.read(n_bytes)
    except OSError:
        return []
    return data.decode("utf-8", errors="replace").splitlines()[-n_lines:]


def secret_write(file: Path, text: str) -> None:
    """Replace a file that its owner alone may read; it is whole at every moment."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)
