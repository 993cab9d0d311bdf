"""Where sources of imports lie on the disk: below the roots that an operator allows, or, uploaded,
in a directory for each job. Knows no database."""

import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Final

from django.conf import settings

from apps.core.exceptions import InvalidRequest
from apps.registry.exceptions import UploadOutOfStep, UploadTooLarge
from apps.registry.types import UPLOAD_SUFFIXES

# What a disk is never filled beyond: others write to it too.
SPARE_BYTES: Final = 512 << 20
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,149}")
_SHOWN: Final = 12
_HASHES_KEPT: Final = 8


# -- roots -------------------------------------------------------------------------------------


def source_below_roots(text: str) -> Path:
    """Return where a file or folder below an allowed root is, links resolved.

    Raises:
        InvalidRequest: it is not there, or elsewhere; which of both is not said.
    """
    roots = [Path(root).resolve() for root in settings.IMPORT_ROOTS]
    for root in roots:
        try:
            found = (root / text).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # absent, a NUL, links in a ring
            continue
        if any(found != each and found.is_relative_to(each) for each in roots):
            return found
    raise InvalidRequest(
        f"There is no such file or folder below {', '.join(map(str, roots))}.", param="source"
    )


def sources_below_roots() -> list[str]:
    """Return the names of some of what could be imported, as ``source_below_roots`` takes them."""
    names: list[str] = []
    for root in settings.IMPORT_ROOTS:
        if Path(root).is_dir():
            names += sorted(path.name for path in Path(root).iterdir() if path.name[0] != ".")
    return [name for name in names if name.isprintable()][:_SHOWN]  # else bytes that are no text


# -- uploads -----------------------------------------------------------------------------------


def upload_name(text: str) -> str:
    """Return the name under which an upload is stored.

    Raises:
        InvalidRequest: no source of a model has such a name.
    """
    name = PurePath(text.replace("\\", "/")).name
    if not _SAFE_NAME.fullmatch(name) or not name.lower().endswith(UPLOAD_SUFFIXES):
        raise InvalidRequest(
            f"{name[:150]!r} cannot be imported: a name of letters, digits and . _ + - is expected "
            f"that ends in {', '.join(UPLOAD_SUFFIXES)}.",
            param="file",
        )
    return name


def upload_path(job_id: str, name: str) -> Path:
    return Path(settings.IMPORT_UPLOADS_DIR) / job_id / name


def upload_room_check(*, size_bytes: int, promised_bytes: int) -> None:
    """promised_bytes: what other uploads have still to bring. Raises UploadTooLarge."""
    if size_bytes > settings.IMPORT_MAX_UPLOAD_BYTES:
        raise UploadTooLarge(
            f"The file has {size_bytes} bytes; IMPORT_MAX_UPLOAD_BYTES allows "
            f"{settings.IMPORT_MAX_UPLOAD_BYTES}.",
            param="file",
        )
    directory = Path(settings.IMPORT_UPLOADS_DIR)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free - promised_bytes - SPARE_BYTES
    if size_bytes > free:
        raise UploadTooLarge(
            f"The file has {size_bytes} bytes; the disk has room for {max(0, free)}.", param="file"
        )


@contextmanager
def upload_opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of an upload's file that nobody else writes to meanwhile.

    Raises:
        UploadOutOfStep: somebody else does.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError as error:
        raise UploadOutOfStep("Another piece of this upload is being written.") from error
    finally:
        os.close(descriptor)


def upload_write(descriptor: int, data: bytes, *, offset: int) -> None:
    """Write all of a piece. Raises UploadTooLarge when the disk is full."""
    left = memoryview(data)
    try:
        while left:
            n_written = os.pwrite(descriptor, left, offset)
            left, offset = left[n_written:], offset + n_written
    except OSError as error:
        raise UploadTooLarge(f"The disk takes no more: {error.strerror}.", param="file") from error


def upload_remove(job_id: str) -> None:
    _hashes.forget(job_id)
    if job_id:
        shutil.rmtree(Path(settings.IMPORT_UPLOADS_DIR) / job_id, ignore_errors=True)


def upload_ids() -> list[str]:
    """Return the ids of the jobs that have a directory."""
    directory = Path(settings.IMPORT_UPLOADS_DIR)
    return [path.name for path in directory.glob("import-*")] if directory.is_dir() else []


def upload_sha256(job_id: str, descriptor: int, *, n_bytes: int) -> str:
    """Return the hash of the first bytes of an upload. Each call reads what the last one in this
    process has not seen; a process that comes to it late reads the rest."""
    return _hashes.advanced(job_id, descriptor, n_bytes=n_bytes)


class _Hashes:
    """Of the uploads that arrive in this process, how far each is hashed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def advanced(self, job_id: str, descriptor: int, *, n_bytes: int) -> str:
        with self._lock:
            digest, at = self._kept.pop(job_id, (None, 0))
        if digest is None or at > n_bytes:
            digest, at = hashlib.sha256(), 0
        while at < n_bytes and (part := os.pread(descriptor, min(1 << 20, n_bytes - at), at)):
            digest.update(part)
            at += len(part)
        with self._lock:
            self._kept[job_id] = digest, at
            while len(self._kept) > _HASHES_KEPT:
                self._kept.popitem(last=False)
        return str(digest.hexdigest())

    def forget(self, job_id: str) -> None:
        with self._lock:
            self._kept.pop(job_id, None)


_hashes: Final = _Hashes()
