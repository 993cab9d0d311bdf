"""Files of versions on this node, fetched from where they are stored and known by the SHA-256 of
their manifest. Shared by all processes here, which tell each other by locks that go with them.
Knows neither the database nor what the storage is. Everything blocks: not for the event loop."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from apps.engines.exceptions import FetchStopped, NodeCacheFull
from apps.engines.fetching import OnBytes, ReadChunks, artifact_fetch, manifest_fetch
from apps.registry.types import Artifact

# Left free for everybody else who writes there.
KEEP_FREE_BYTES: Final = 256 << 20
_WAIT_S: Final = 0.2
_PARTIAL: Final = ".partial"
_GONE: Final = ".gone"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Hold:
    """Files that are there, whole, and stay until ``release``."""

    directory: Path
    lock: IO[str]

    def release(self) -> None:
        """Idempotent."""
        with contextlib.suppress(OSError, ValueError):
            os.utime(self.lock.fileno())  # used until now
        self.lock.close()


class NodeCache:
    """At most ``most_bytes``, those that are being fetched included; who was used longest ago makes
    room.

    ``SHA/``           whole, checked, and never changed
    ``SHA.partial/``   being fetched, or left by a fetch that was cut off, which goes on there
    ``locks/SHA``      held by all who use the files or wait for them; alone by whoever evicts them.
                       Its time says when they were used last
    ``locks/SHA.fetch``  held by whoever fetches; says how many bytes there will be
    ``locks/room``     held while room is made
    """

    def __init__(
        self,
        directory: Path,
        *,
        most_bytes: int,
        read: ReadChunks,
        keep_free_bytes: int = KEEP_FREE_BYTES,
    ) -> None:
        self._directory = directory
        self._locks = directory / "locks"
        self._most_bytes = most_bytes
        self._read = read
        self._keep_free_bytes = keep_free_bytes

    def directory_of(self, artifact: Artifact) -> Path:
        """Return where its files are once they are there."""
        return self._directory / artifact.manifest_sha256

    def hold(
        self,
        artifact: Artifact,
        *,
        on_bytes: OnBytes = lambda done, total: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> Hold:
        """Return once the files are there, fetched by us or by somebody else, and by one only.

        Raises:
            NodeCacheFull: there is no room beside what is in use; says how much is missing.
            FilesAltered: what the storage has is not what was imported.
            FetchStopped: ``is_stopping``.
            AppError: what ``read`` raises.
        """
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock_file(artifact.manifest_sha256)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)  # from here on nobody evicts it
            if not self.directory_of(artifact).is_dir():
                with self._fetcher(artifact, on_bytes=on_bytes, is_stopping=is_stopping) as size:
                    if not self.directory_of(artifact).is_dir():
                        self._fetch(artifact, size, on_bytes=on_bytes, is_stopping=is_stopping)
            os.utime(lock.fileno())
        except BaseException:
            lock.close()
            raise
        return Hold(self.directory_of(artifact), lock)

    def doubt(self, hold: Hold) -> None:
        """Have files that an engine refused looked at again, byte for byte, by whoever wants them
        next. Others that use them keep them."""
        hold.release()
        with self._locked("room"), self._unused(hold.directory.name) as is_unused:
            if is_unused and hold.directory.is_dir():
                hold.directory.rename(self._partial(hold.directory.name))

    def used_bytes(self) -> int:
        """Return how much lies there now."""
        return sum(_size(folder) for folder in self._folders())

    # -- fetching ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fetcher(
        self, artifact: Artifact, *, on_bytes: OnBytes, is_stopping: Callable[[], bool]
    ) -> Iterator[IO[str]]:
        """Be the one who fetches, once nobody else does; tells meanwhile how far they are."""
        sha256 = artifact.manifest_sha256
        with self._lock_file(f"{sha256}.fetch") as lock:
            while not _taken(lock):
                if is_stopping():
                    raise FetchStopped("It is not wanted any more.")
                on_bytes(_size(self._partial(sha256)), artifact.size_bytes)
                time.sleep(_WAIT_S)
            yield lock

    def _fetch(
        self,
        artifact: Artifact,
        size: IO[str],
        *,
        on_bytes: OnBytes,
        is_stopping: Callable[[], bool],
    ) -> None:
        partial = self._partial(artifact.manifest_sha256)
        manifest = manifest_fetch(artifact, partial=partial, read=self._read)
        self._room_make(artifact, manifest.size_bytes, size=size)
        try:
            artifact_fetch(
                artifact,
                manifest,
                partial=partial,
                read=self._read,
                on_bytes=on_bytes,
                is_stopping=is_stopping,
            )
        except OSError as error:
            if error.errno not in _FULL:
                raise
            missing = manifest.size_bytes - _size(partial)
            shutil.rmtree(
                partial, ignore_errors=True
            )  # others need the room more than we our start
            raise self._full(
                manifest.size_bytes, missing, why=f"the disk of {self._directory} is full"
            ) from error
        partial.rename(self.directory_of(artifact))
        _sync(self._directory)

    # -- room ----------------------------------------------------------------------------------

    def _room_make(self, artifact: Artifact, n_bytes: int, *, size: IO[str]) -> None:
        """Reserve room, evicting what nobody uses and was used longest ago.

        Raises:
            NodeCacheFull: what is left is in use, or the bound is too small for the one.
        """
        own = artifact.manifest_sha256
        with self._locked("room"):
            for left in self._directory.glob(f"*{_GONE}"):
                shutil.rmtree(left, ignore_errors=True)
            while True:
                over = self._held_bytes(but=own) + n_bytes - self._most_bytes
                short = self._disk_short(own, n_bytes)
                if max(over, short) <= 0:
                    break
                unused = self._unused_folders(but=own)
                # Nothing is evicted for somebody who finds no room in the end.
                if (missing := max(over, short) - sum(map(_size, unused))) > 0:
                    of_bound = f"NODE_CACHE_BYTES is {self._most_bytes:,}"
                    of_disk = f"the disk of {self._directory} has no more"
                    raise self._full(n_bytes, missing, why=of_bound if over >= short else of_disk)
                self._evict(unused[0])
            size.seek(0)
            size.truncate()
            size.write(str(n_bytes))
            size.flush()
            self._partial(own).mkdir(mode=0o700, exist_ok=True)

    def _full(self, n_bytes: int, missing: int, *, why: str) -> NodeCacheFull:
        return NodeCacheFull(
            f"The node cache has no room for its files: of {n_bytes:,} bytes {missing:,} are "
            f"missing beside what is in use ({why}).",
            missing_bytes=missing,
        )

    def _held_bytes(self, *, but: str) -> int:
        """Return what all others have, or have been promised."""
        return sum(
            max(_size(folder), self._promised(folder))
            for folder in self._folders()
            if _sha256_of(folder) != but
        )

    def _disk_short(self, own: str, n_bytes: int) -> int:
        """Return how much the disk lacks, when all that was promised will be there."""
        to_come = n_bytes - _size(self._partial(own))
        for folder in self._folders():
            if _sha256_of(folder) != own:
                to_come += max(0, self._promised(folder) - _size(folder))
        return to_come + self._keep_free_bytes - shutil.disk_usage(self._directory).free

    def _promised(self, folder: Path) -> int:
        """Return how much a folder that is being fetched will hold; 0 where nobody fetches it."""
        if folder.suffix != _PARTIAL:
            return 0
        with self._lock_file(f"{_sha256_of(folder)}.fetch") as lock:
            if _taken(lock):
                return 0
            lock.seek(0)
            return int(lock.read() or 0)

    def _unused_folders(self, *, but: str) -> list[Path]:
        """Return what may go, what was used longest ago first."""
        found = []
        for folder in self._folders():
            with self._unused(_sha256_of(folder)) as is_unused:
                if is_unused and _sha256_of(folder) != but:
                    found.append(folder)
        return sorted(found, key=self._used_at)

    def _evict(self, folder: Path) -> None:
        """Remove a folder, unless somebody has begun to use it."""
        with self._unused(_sha256_of(folder)) as is_unused:
            if is_unused:
                gone = folder.with_name(f"{folder.name}{_GONE}")
                folder.rename(gone)  # at once: nobody is to find half of it
                shutil.rmtree(gone)

    def _folders(self) -> list[Path]:
        """Return the folders of versions, whole or not."""
        found = self._directory.glob("*/") if self._directory.is_dir() else iter(())
        return [each for each in found if each.name != "locks" and each.suffix != _GONE]

    def _used_at(self, folder: Path) -> float:
        try:
            return (self._locks / _sha256_of(folder)).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _partial(self, sha256: str) -> Path:
        return self._directory / f"{sha256}{_PARTIAL}"

    # -- locks ---------------------------------------------------------------------------------

    def _lock_file(self, name: str) -> IO[str]:
        return (self._locks / name).open("a+")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._lock_file(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _unused(self, sha256: str) -> Iterator[bool]:
        """Keep others from beginning to use something, if nobody does."""
        with self._lock_file(sha256) as lock:
            yield _taken(lock)


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sha256_of(folder: Path) -> str:
    return folder.name.removesuffix(_PARTIAL)


def _size(folder: Path) -> int:
    n_bytes = 0
    with contextlib.suppress(FileNotFoundError):  # it was just put in place, or evicted
        for entry in os.scandir(folder):
            n_bytes += entry.stat().st_size
    return n_bytes


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
