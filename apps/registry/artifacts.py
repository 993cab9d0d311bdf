"""Where the files of versions are, for whoever reads them. In the models directory they are used in
place; from a bucket they must be fetched first."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

from django.core.files.storage import FileSystemStorage, storages

from apps.registry.exceptions import ArtifactAltered, ArtifactMissing
from apps.registry.models import ModelVersion
from apps.registry.types import Artifact

STORAGE: Final = "artifacts"
MANIFEST: Final = "manifest.json"
_LOOK_S: Final = 0.5


class RemoteStorage(Protocol):
    """What a storage does whose files are not on this machine; ``S3Artifacts`` says how."""

    def put(self, name: str, content: IO[bytes], *, n_bytes: int) -> None: ...

    def chunks(self, name: str, *, offset: int) -> Iterator[bytes]: ...

    def sizes(self, folder: str) -> dict[str, int]: ...

    def remove(self, folder: str) -> None: ...

    def ask(self) -> None: ...


def remote_storage() -> RemoteStorage | None:
    """Return the storage that files are fetched from; None where they are used in place."""
    storage = storages[STORAGE]
    return None if isinstance(storage, FileSystemStorage) else cast("RemoteStorage", storage)


def version_dir(version: ModelVersion) -> Path | None:
    """Return where a version's files are used in place; None where they must be fetched."""
    storage = storages[STORAGE]
    return Path(storage.path(version.path)) if isinstance(storage, FileSystemStorage) else None


def artifact_of(version: ModelVersion) -> Artifact:
    """Return what of a version is fetched, and how it is known to be right."""
    return Artifact(
        path=version.path,
        manifest_sha256=version.manifest_sha256,
        size_bytes=version.size_bytes,
    )


def artifact_chunks(name: str, offset: int) -> Iterator[bytes]:
    """Yield a file of the storage from a byte on.

    Raises:
        ArtifactMissing: there is no such file.
        StorageAway: the storage does not answer.
    """
    storage = remote_storage()
    assert storage is not None
    return storage.chunks(name, offset=offset)


def is_artifact_there(path: str) -> bool:
    """Whether files of a version are in the storage. Raises StorageAway."""
    storage = remote_storage()
    if storage is None:
        return (Path(storages[STORAGE].path(path)) / MANIFEST).is_file()
    return MANIFEST in storage.sizes(path)


def artifact_upload(
    directory: Path,
    *,
    path: str,
    manifest: Mapping[str, Any],
    manifest_sha256: str,
    on_bytes: Callable[[int, int], None],
) -> None:
    """Bring the files of a directory to a folder of the storage, where nothing is yet.

    Each file is hashed as it is sent, and must be what the manifest says. on_bytes: hears how many
    bytes of all are sent, now and then, in the caller's own thread; it may raise to stop.

    Raises:
        ArtifactAltered: a file on the disk is not what was converted.
        StorageAway: the storage does not answer, or keeps less than it was sent.
    """
    storage = remote_storage()
    assert storage is not None
    files: dict[str, tuple[str, int]] = {
        name: (file["sha256"], file["size_bytes"]) for name, file in manifest["files"].items()
    }
    files[MANIFEST] = (manifest_sha256, (directory / MANIFEST).stat().st_size)
    total = sum(size for _, size in files.values())
    sent = _Sent()

    def send() -> None:
        for name, (sha256, size) in files.items():
            with (directory / name).open("rb") as file:
                hashed = _Hashed(file, sent=sent)
                storage.put(f"{path}/{name}", cast("IO[bytes]", hashed), n_bytes=size)
            if hashed.sha256 != sha256:
                raise ArtifactAltered(f"{name} changed on the disk while it was sent.")

    with ThreadPoolExecutor(1, "artifact-upload") as pool:
        job = pool.submit(send)
        try:
            while not job.done():
                wait([job], timeout=_LOOK_S)
                on_bytes(sent.n_bytes, total)
            job.result()
        finally:
            sent.is_stopped.set()
    there = storage.sizes(path)
    for name, (_, size) in files.items():
        if there.get(name) != size:
            raise ArtifactMissing(f"{path}/{name} was sent and is not in the storage.")


class _Sent:
    """Shared with the threads that send."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.is_stopped = threading.Event()


class _Stopped(Exception):
    """Whoever wanted the upload wants it no more."""


class _Hashed:
    """A file that is read once, from its beginning to its end: without a way back the client reads
    each byte for sending only, and keeps what it may have to send again."""

    def __init__(self, file: IO[bytes], *, sent: _Sent) -> None:
        self._file = file
        self._sent = sent
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, n_bytes: int = -1) -> bytes:
        if self._sent.is_stopped.is_set():
            raise _Stopped
        data = self._file.read(n_bytes)
        self._digest.update(data)
        self._sent.n_bytes += len(data)
        return data
