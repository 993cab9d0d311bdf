"""Brings the files of a version from where they are stored to a folder, going on where it was cut
off, and believes no byte that the manifest does not confirm. Knows no cache and no storage."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apps.engines.exceptions import FetchStopped, FilesAltered
from apps.registry.types import Artifact

MANIFEST: Final = "manifest.json"
_MANIFEST_MOST_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 20

ReadChunks = Callable[[str, int], Iterator[bytes]]  # of a file of the storage, from a byte on
OnBytes = Callable[[int, int], None]  # how many there are, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedManifest:
    """raw: as it is stored, and as its hash is of. files: all but the manifest itself."""

    raw: bytes
    files: Mapping[str, FileFacts]

    @property
    def size_bytes(self) -> int:
        return len(self.raw) + sum(file.size_bytes for file in self.files.values())


def manifest_fetch(artifact: Artifact, *, partial: Path, read: ReadChunks) -> FetchedManifest:
    """Return the manifest, from the folder if it is there already.

    Raises:
        FilesAltered: the storage has another one.
    """
    try:
        raw = (partial / MANIFEST).read_bytes()
    except FileNotFoundError:
        raw = b""
    if _sha256(raw) != artifact.manifest_sha256:
        raw = b""
        for chunk in read(f"{artifact.path}/{MANIFEST}", 0):
            raw += chunk
            if len(raw) > _MANIFEST_MOST_BYTES:
                break
    if _sha256(raw) != artifact.manifest_sha256:
        raise _altered(MANIFEST, said=_sha256(raw), expected=artifact.manifest_sha256)
    files: dict[str, Any] = json.loads(raw)["files"]
    for name in files:
        if name in {"", ".", "..", MANIFEST} or "/" in name or "\0" in name:
            raise FilesAltered(f"The manifest lists {name!r}, which is not a file name.")
    facts = {
        name: FileFacts(sha256=file["sha256"], size_bytes=file["size_bytes"])
        for name, file in files.items()
    }
    return FetchedManifest(raw=raw, files=facts)


def artifact_fetch(
    artifact: Artifact,
    manifest: FetchedManifest,
    *,
    partial: Path,
    read: ReadChunks,
    on_bytes: OnBytes,
    is_stopping: Callable[[], bool],
) -> None:
    """Make ``partial``, which is there, a whole and checked copy, on the disk.

    Raises:
        FilesAltered: a file in the storage is not what the manifest says.
        FetchStopped: ``is_stopping``; what is there by then is kept.
    """
    _strangers_remove(partial, manifest)
    _write(partial / MANIFEST, manifest.raw)
    n_before = len(manifest.raw)
    for name, facts in manifest.files.items():
        fetch = _FileFetch(partial / name, key=f"{artifact.path}/{name}", facts=facts, read=read)
        for n_bytes in fetch.run():
            if is_stopping():
                raise FetchStopped("It is not wanted any more.")
            on_bytes(n_before + n_bytes, manifest.size_bytes)
        n_before += facts.size_bytes
    _sync(partial)


class _FileFetch:
    """One file."""

    def __init__(self, path: Path, *, key: str, facts: FileFacts, read: ReadChunks) -> None:
        self._path = path
        self._key = key
        self._facts = facts
        self._read = read
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def run(self) -> Iterator[int]:
        """Yield how many bytes there are, now and then. What an earlier fetch left is hashed, and
        gone on from; where that turns out wrong, its end may be to blame, and all is fetched."""
        yield from self._kept()
        was_cut_off = self._n_bytes > 0
        yield from self._fetched()
        if not self._is_right() and was_cut_off:
            self._begin_anew()
            yield from self._fetched()
        if not self._is_right():
            said = self._digest.hexdigest()
            self._path.unlink(missing_ok=True)
            raise _altered(self._path.name, said=said, expected=self._facts.sha256)

    def _kept(self) -> Iterator[int]:
        if not self._path.is_file() or self._path.stat().st_size > self._facts.size_bytes:
            self._begin_anew()
            return
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._count(chunk)
                yield self._n_bytes

    def _fetched(self) -> Iterator[int]:
        with self._path.open("ab") as file:
            if self._n_bytes < self._facts.size_bytes:
                for chunk in self._read(self._key, self._n_bytes):
                    file.write(chunk)
                    file.flush()  # so that whoever comes after a crash has it
                    self._count(chunk)
                    yield self._n_bytes
                    if self._n_bytes > self._facts.size_bytes:
                        break
            os.fsync(file.fileno())

    def _begin_anew(self) -> None:
        self._path.unlink(missing_ok=True)
        self._digest, self._n_bytes = hashlib.sha256(), 0

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._n_bytes += len(chunk)

    def _is_right(self) -> bool:
        facts = FileFacts(sha256=self._digest.hexdigest(), size_bytes=self._n_bytes)
        return facts == self._facts


def _strangers_remove(partial: Path, manifest: FetchedManifest) -> None:
    """An engine refuses a folder in which something else lies."""
    for path in partial.iterdir():
        if path.name not in manifest.files and path.name != MANIFEST:
            path.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _altered(name: str, *, said: str, expected: str) -> FilesAltered:
    return FilesAltered(
        f"{name} in the artifact storage was altered: its SHA-256 is {said[:12]}…; "
        f"{expected[:12]}… was imported."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
