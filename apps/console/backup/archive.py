"""The file of a backup: a gzipped tar of plain files, whose last member is a manifest with the
SHA-256 of each before it. Written and read as a stream, in bounded memory; knows no Django.

A reader believes nothing that the manifest does not confirm, and no name that leads elsewhere.
"""

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

import msgspec

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
PARTS: Final = ("database", "var", "models", "files", "media")
_MANIFEST_MOST_BYTES: Final = 64 * 1024 * 1024
_CHUNK_BYTES: Final = 1 << 20
# Weights hardly shrink, however long one tries.
_GZIP_LEVEL: Final = 1

Sink = Callable[[str], IO[bytes]]


class BackupError(Exception):
    """A backup cannot be made, or is not good; the message is for the operator."""


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    size_bytes: int
    sha256: str


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup is of. migrations: applied in its database, as ``app.name``."""

    created_at: str
    database: Literal["sqlite", "postgresql"]
    parts: tuple[str, ...]
    migrations: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    origin: Origin
    members: tuple[Member, ...]

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members)


class ArchiveWriter:
    """Writes one archive to a new file that its owner alone may read."""

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._raw = os.fdopen(descriptor, "wb")
        self._zipped = gzip.GzipFile(
            fileobj=self._raw, mode="wb", filename="", compresslevel=_GZIP_LEVEL, mtime=0
        )
        self._tar = tarfile.open(fileobj=self._zipped, mode="w|")  # noqa: SIM115 - see __exit__
        self._members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:  # what they still want to write, nobody will read
            for each in (self._tar, self._zipped):
                with contextlib.suppress(OSError, ValueError):
                    each.close()
        self._raw.close()

    def add_file(self, name: str, file: Path) -> None:
        """Raises OSError, also where the file shrinks while it is read."""
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as handle:
            self._add(name, handle, size_bytes=os.fstat(descriptor).st_size)

    def add_bytes(self, name: str, data: bytes) -> None:
        self._add(name, io.BytesIO(data), size_bytes=len(data))

    def finish(self, origin: Origin) -> Manifest:
        """Write the manifest, and all of it to the disk."""
        manifest = Manifest(format=FORMAT, origin=origin, members=tuple(self._members))
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        self._tar.addfile(_info(MANIFEST, size_bytes=len(data)), io.BytesIO(data))
        self._tar.close()
        self._zipped.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        return manifest

    def _add(self, name: str, source: IO[bytes], *, size_bytes: int) -> None:
        reader = _HashingReader(source)
        self._tar.addfile(_info(name, size_bytes=size_bytes), reader)
        _forget(self._tar)
        self._members.append(
            Member(name=name, size_bytes=size_bytes, sha256=reader.digest.hexdigest())
        )


class _HashingReader(io.RawIOBase):
    def __init__(self, source: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def archive_read(file: IO[bytes], *, sink: Sink | None = None) -> Manifest:
    """Read an archive to its end and check all of it. ``sink`` opens a file for each member's
    bytes, which are good only once this has returned.

    Raises:
        BackupError: it is cut off, altered, of another make, or leads out of its place.
    """
    found: dict[str, Member] = {}
    manifest: Manifest | None = None
    try:
        file.seek(0)
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            with tarfile.open(fileobj=unzipped, mode="r|") as tar:
                for info in _infos(tar):
                    if manifest is not None:
                        raise BackupError(f"{info.name!r} comes after the manifest")
                    data = tar.extractfile(info)
                    assert data is not None
                    if info.name == MANIFEST:
                        manifest = _manifest(data, size_bytes=info.size)
                    elif info.name in found:
                        raise BackupError(f"{info.name!r} is there twice")
                    else:
                        found[info.name] = _copied(info, data, sink=sink)
            _end(unzipped)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise BackupError(f"the archive is cut off or altered: {error}") from error
    if manifest is None:
        raise BackupError("the archive is cut off or altered: it has no manifest")
    _compare(manifest, found)
    return manifest


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for info in tar:
        # Not even a link to a place inside: a later member could be written through it.
        if not info.isreg() or info.issparse():
            raise BackupError(f"{info.name!r} is not a plain file")
        if info.name != MANIFEST:
            name_check(info.name)
        yield info
        _forget(tar)


def _forget(tar: tarfile.TarFile) -> None:
    """It would remember every member for ever."""
    tar.members.clear()  # type: ignore[attr-defined]


def name_check(name: str) -> None:
    """Raises BackupError unless the name stays below one of ``PARTS``."""
    part, *below = name.split("/")
    is_bad = any(step in ("", ".", "..") or "\0" in step or "\\" in step for step in below)
    if part not in PARTS or not below or is_bad:
        raise BackupError(f"{name!r} is no place in a backup")


def _copied(info: tarfile.TarInfo, data: IO[bytes], *, sink: Sink | None) -> Member:
    digest = hashlib.sha256()
    target = sink(info.name) if sink is not None else io.BytesIO()
    with target:
        while chunk := data.read(_CHUNK_BYTES):
            digest.update(chunk)
            if sink is not None:
                target.write(chunk)
    return Member(name=info.name, size_bytes=info.size, sha256=digest.hexdigest())


def _manifest(data: IO[bytes], *, size_bytes: int) -> Manifest:
    if size_bytes > _MANIFEST_MOST_BYTES:
        raise BackupError("the manifest is larger than one can be")
    raw = data.read()
    try:
        made_by = msgspec.json.decode(raw, type=_Format).format
        if made_by != FORMAT:
            raise BackupError(f"the archive has format {made_by}; this version reads {FORMAT}")
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BackupError(f"the manifest cannot be read: {error}") from error


class _Format(msgspec.Struct):
    format: int


def _end(unzipped: gzip.GzipFile) -> None:
    """Read what is left, whose checksum is at its end: nothing but the padding of a tar."""
    while rest := unzipped.read(_CHUNK_BYTES):
        if rest.strip(b"\0"):
            raise BackupError("something comes after the end of the archive")


def _compare(manifest: Manifest, found: dict[str, Member]) -> None:
    expected = {member.name: member for member in manifest.members}
    for name in expected.keys() ^ found.keys():
        where = "missing" if name in expected else "not in the manifest"
        raise BackupError(f"{name!r} is {where}")
    for name, member in expected.items():
        if found[name] != member:
            raise BackupError(f"{name!r} was altered: its SHA-256 differs from the manifest's")


def _info(name: str, *, size_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o600
    return info
