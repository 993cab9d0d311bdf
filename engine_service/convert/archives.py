"""Takes the one model out of an archive, and nothing that leads elsewhere, grows without end or is
no plain file. Knows archives, not models."""

import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from engine_service.convert.errors import ConversionError
from engine_service.convert.files import refuse_pickle

ZIP_SUFFIXES: Final = (".whl", ".zip")
TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
ARCHIVE_SUFFIXES: Final = ZIP_SUFFIXES + TAR_SUFFIXES
MAX_ARCHIVE_MEMBERS: Final = 10_000
# Weights hardly shrink: what unpacks to so many times its size was made to fill a disk.
MAX_RATIO: Final = 100
ALWAYS_UNPACKED_BYTES: Final = 16 << 20
MAX_TAR_HEADER_BYTES: Final = 1 << 16
_COPY_BYTES: Final = 1 << 20
_TAR_HEADERS: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

# What the readers raise on bytes that are no archive; UnicodeDecodeError is a ValueError.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    OverflowError,
    ValueError,
)

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    name: str
    size_bytes: int
    handle: Any  # what the reader knows it by


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack_model(path: Path, *, scratch: Path, on_bytes: OnBytes) -> Path:
    """Extract the one model of an archive into ``scratch``; return its file or directory there."""
    is_zip = path.name.lower().endswith(ZIP_SUFFIXES)
    archive = _Zip(path) if is_zip else _Tar(path)
    try:
        members, model = _model_members(_checked(archive.members()))
        total = sum(member.size_bytes for member in members)
        _check_size(path, total=total, free=shutil.disk_usage(scratch).free)
        done = 0
        for member, packed in archive.opened(members):
            done = _extract(packed, member, into=scratch, done=done, total=total, on_bytes=on_bytes)
    except _DAMAGED as error:
        raise ConversionError(f"{path.name} is damaged: {error}", field="source") from error
    except OSError as error:  # a full disk, or an offset that no file can have
        raise ConversionError(
            f"{path.name} cannot be unpacked: {error.strerror or error}", field="source"
        ) from error
    return scratch / model


def _check_size(path: Path, *, total: int, free: int) -> None:
    if total > _most_unpacked_bytes(path):
        raise _too_much(path)
    if total > free:
        raise ConversionError(
            f"{path.name} unpacks to {total} bytes, more than the disk has free", field="source"
        )


def _most_unpacked_bytes(path: Path) -> int:
    return max(ALWAYS_UNPACKED_BYTES, MAX_RATIO * path.stat().st_size)


def _too_much(path: Path) -> ConversionError:
    return ConversionError(
        f"{path.name} unpacks to more than {_most_unpacked_bytes(path)} bytes, {MAX_RATIO} times "
        "its size: no model does",
        field="source",
    )


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path

    def members(self) -> Iterator[_Member]:
        with zipfile.ZipFile(self._path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                _check_kind(
                    info.filename,
                    is_link=kind == stat.S_IFLNK,
                    is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR),
                )
                if info.flag_bits & 0x1:
                    raise _refused(info.filename, "is encrypted")
                if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    raise _refused(info.filename, "is compressed in an unsupported way")
                yield _Member(
                    name=info.filename,
                    size_bytes=-1 if info.filename.endswith("/") else info.file_size,
                    handle=info,
                )

    def opened(self, members: Iterable[_Member]) -> Iterator[tuple[_Member, IO[bytes]]]:
        """Yield each member with its content, which zipfile ends at its size and whose CRC it
        checks."""
        with zipfile.ZipFile(self._path) as archive:
            for member in members:
                with archive.open(member.handle) as packed:
                    yield member, packed


class _Tar:
    """Read as a stream, twice, so that nothing of it is ever held whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def members(self) -> Iterator[_Member]:
        with self._archive() as archive:
            for index, info in enumerate(archive):
                _check_kind(
                    info.name,
                    is_link=info.issym() or info.islnk(),
                    is_plain=info.isdir() or (info.isreg() and info.sparse is None),
                )
                yield _Member(
                    name=info.name, size_bytes=-1 if info.isdir() else info.size, handle=index
                )

    def opened(self, members: Iterable[_Member]) -> Iterator[tuple[_Member, IO[bytes]]]:
        wanted = {member.handle: member for member in members}
        with self._archive() as archive:
            for index, info in enumerate(archive):
                if index in wanted and (packed := archive.extractfile(info)) is not None:
                    with packed:
                        yield wanted[index], packed

    @contextmanager
    def _archive(self) -> Iterator[tarfile.TarFile]:
        is_packed = not self._path.name.lower().endswith(".tar")
        opener: Any = gzip.open if is_packed else Path.open
        with opener(self._path, "rb") as file:
            bounded: Any = _Bounded(file, path=self._path)
            with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_TarInfo) as archive:
                yield archive


class _TarInfo(tarfile.TarInfo):
    """Long names and attributes come in headers that are read whole, whatever size they declare."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _TAR_HEADERS and info.size > MAX_TAR_HEADER_BYTES):
            raise _refused(info.name, f"has a header of {info.size} bytes")
        return info


class _Bounded:
    """A stream that ends in a refusal when more comes out of it than any model takes."""

    def __init__(self, file: IO[bytes], *, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = _most_unpacked_bytes(path)

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        self._left -= len(data)
        if self._left < 0:
            raise _too_much(self._path)
        return data


def _refused(name: str, why: str) -> ConversionError:
    return ConversionError(f"archive member {name!r} {why}", field=name or "source")


def _check_kind(name: str, *, is_link: bool, is_plain: bool) -> None:
    if is_link:
        raise _refused(name, "is a symbolic link or a hard link")
    if not is_plain:
        raise _refused(name, "is no plain file: a device, a pipe, or a file with holes")


def _checked(members: Iterable[_Member]) -> list[_Member]:
    """Return the members that are files; raises at the first that no archive of a model has."""
    seen: set[str] = set()
    files: list[_Member] = []
    for member in members:
        name = member.name
        pure = PurePosixPath(name)
        if not name:  # zipfile itself would stumble over it
            raise ConversionError("an archive member has no name", field="source")
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise _refused(name, "leads outside")
        if str(pure) in seen:
            raise _refused(name, "appears twice")
        seen.add(str(pure))
        if len(seen) > MAX_ARCHIVE_MEMBERS:
            raise ConversionError(
                f"the archive has more than {MAX_ARCHIVE_MEMBERS} members", field="source"
            )
        if member.size_bytes >= 0:
            refuse_pickle(Path(name))
            files.append(member)
    return files


def _model_members(members: list[_Member]) -> tuple[list[_Member], str]:
    """The members to extract, and the path of the model under the scratch directory."""
    ggufs = [member for member in members if member.name.lower().endswith(".gguf")]
    folders = {
        PurePosixPath(member.name).parent
        for member in members
        if PurePosixPath(member.name).name == "config.json"
    }
    if len(ggufs) == 1 and not folders:
        return ggufs, ggufs[0].name
    # The configuration of a module of a model lies one folder deeper than the model's own.
    modules = {folder for folder in folders if folder.parent in folders and folder.name}
    folders -= modules
    if len(folders) == 1 and not ggufs:
        folder = folders.pop()
        inside = [
            member
            for member in members
            if (path := PurePosixPath(member.name)).parent == folder
            or (path.parent in modules and path.name == "config.json")
        ]
        return inside, str(folder)
    raise ConversionError(
        f"the archive holds {len(ggufs)} .gguf files and {len(folders)} model directories; "
        "exactly one model is expected",
        field="source",
    )


def _extract(
    packed: IO[bytes],
    member: _Member,
    *,
    into: Path,
    done: int,
    total: int,
    on_bytes: OnBytes,
) -> int:
    """Copy one member. Returns all bytes done."""
    target = into / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size_bytes
    with target.open("xb") as file:
        while chunk := packed.read(_COPY_BYTES):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
            done += len(chunk)
            on_bytes(done, total)
    if left != 0:
        raise _refused(member.name, "is not of the size it declares")
    return done
