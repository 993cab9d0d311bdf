"""Opens what an operator names: a GGUF file, an archive that holds one model, or a directory."""

import hashlib
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from engine_service.convert.checkpoint import Checkpoint
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import model_files, refuse_link, refuse_pickle
from engine_service.convert.gguf_reader import GgufFile
from engine_service.convert.gguf_source import open_gguf
from engine_service.convert.hf_source import open_hugging_face
from engine_service.models.manifest import ManifestSource, hash_file

ARCHIVE_SUFFIXES = frozenset({".whl", ".zip"})
MAX_ARCHIVE_MEMBERS = 10_000
_COPY_BYTES = 1 << 20

# What zipfile raises on bytes that are no archive; UnicodeDecodeError is a ValueError.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    OverflowError,
    ValueError,
)

OnBytes = Callable[[int, int], None]


def identify_source(path: Path) -> ManifestSource:
    """Name and hash of a source; a directory's hash covers each file's name and content."""
    refuse_link(path)
    refuse_pickle(path)
    if path.is_file():
        return ManifestSource(name=path.name, sha256=hash_file(path))
    if not path.is_dir():
        raise ConversionError(f"{path} is neither a file nor a directory", field="source")
    digest = hashlib.sha256()
    for name, file in model_files(path).items():
        digest.update(f"{hash_file(file)} {name}\n".encode())
    return ManifestSource(name=path.resolve().name, sha256=digest.hexdigest())


def open_source(
    path: Path, *, scratch: Path, resources: ExitStack, on_bytes: OnBytes
) -> Checkpoint:
    """Check a source and describe it. Archives are unpacked into ``scratch``."""
    if path.is_dir():
        return open_hugging_face(path, resources=resources)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return open_gguf(resources.enter_context(GgufFile(path)))
    if suffix in ARCHIVE_SUFFIXES:
        model = _unpack(path, scratch=scratch, on_bytes=on_bytes)
        return open_source(model, scratch=scratch, resources=resources, on_bytes=on_bytes)
    raise ConversionError(
        f"{path.name} is neither a .gguf file, a {' or '.join(sorted(ARCHIVE_SUFFIXES))} archive "
        "nor a directory",
        field="source",
    )


def _unpack(path: Path, *, scratch: Path, on_bytes: OnBytes) -> Path:
    """Extract the one model of an archive and nothing else of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members, model = _model_members(_checked_members(archive))
            total = sum(member.file_size for member in members)
            if total > shutil.disk_usage(scratch).free:
                raise ConversionError(
                    f"{path.name} unpacks to {total} bytes, more than the disk has free",
                    field="source",
                )
            done = 0
            for member in members:
                done = _extract(
                    archive, member, into=scratch, done=done, total=total, on_bytes=on_bytes
                )
    except _DAMAGED as error:
        raise ConversionError(f"{path.name} is damaged: {error}", field="source") from error
    except OSError as error:  # a full disk, or an offset that no file can have
        raise ConversionError(
            f"{path.name} cannot be unpacked: {error.strerror}", field="source"
        ) from error
    return scratch / model


def _checked_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MAX_ARCHIVE_MEMBERS:
        raise ConversionError(
            f"the archive has {len(members)} members; at most {MAX_ARCHIVE_MEMBERS} are read",
            field="source",
        )
    seen: set[str] = set()
    for member in members:
        name = member.filename
        pure = PurePosixPath(name)
        if not name:  # zipfile itself would stumble over it
            raise ConversionError("an archive member has no name", field="source")
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise ConversionError(f"archive member {name!r} leads outside", field=name)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ConversionError(f"archive member {name!r} is a symbolic link", field=name)
        if member.flag_bits & 0x1:
            raise ConversionError(f"archive member {name!r} is encrypted", field=name)
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ConversionError(
                f"archive member {name!r} is compressed in an unsupported way", field=name
            )
        if name in seen:
            raise ConversionError(f"archive member {name!r} appears twice", field=name)
        seen.add(name)
    return [member for member in members if not member.is_dir()]


def _model_members(members: list[zipfile.ZipInfo]) -> tuple[list[zipfile.ZipInfo], str]:
    """The members to extract, and the path of the model under the scratch directory."""
    ggufs = [member for member in members if member.filename.lower().endswith(".gguf")]
    folders = {
        PurePosixPath(member.filename).parent
        for member in members
        if PurePosixPath(member.filename).name == "config.json"
    }
    if len(ggufs) == 1 and not folders:
        return ggufs, ggufs[0].filename
    # The configuration of a module of a model lies one folder deeper than the model's own.
    modules = {folder for folder in folders if folder.parent in folders and folder.name}
    folders -= modules
    if len(folders) == 1 and not ggufs:
        folder = folders.pop()
        inside = [
            member
            for member in members
            if (path := PurePosixPath(member.filename)).parent == folder
            or (path.parent in modules and path.name == "config.json")
        ]
        return inside, str(folder)
    raise ConversionError(
        f"the archive holds {len(ggufs)} .gguf files and {len(folders)} model directories; "
        "exactly one model is expected",
        field="source",
    )


def _extract(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    *,
    into: Path,
    done: int,
    total: int,
    on_bytes: OnBytes,
) -> int:
    """Copy one member; zipfile stops at its size and checks its CRC. Returns all bytes done."""
    target = into / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as packed, target.open("xb") as file:
        while chunk := packed.read(_COPY_BYTES):
            left -= len(chunk)
            file.write(chunk)
            done += len(chunk)
            on_bytes(done, total)
    if left != 0:
        raise ConversionError(
            f"archive member {member.filename!r} is not of the size it declares",
            field=member.filename,
        )
    return done
