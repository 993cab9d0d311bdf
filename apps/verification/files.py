"""Whether the files of a version are those that were imported, byte for byte."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from apps.verification.exceptions import VerificationFailed

MANIFEST: Final = "manifest.json"
_CHUNK_BYTES: Final = 1 << 20

# Hears of each piece how many bytes of all were read; may raise to stop.
OnBytes = Callable[[int, int], None]


def files_check(
    directory: Path,
    *,
    manifest: Mapping[str, Any],
    manifest_sha256: str,
    on_bytes: OnBytes = lambda done, total: None,
) -> int:
    """Compare every file with the manifest as the database has it; return the number of bytes.

    Raises:
        VerificationFailed: a file is missing, altered, or not in the manifest; it is named.
    """
    files: dict[str, Any] = manifest.get("files", {})
    if not files:
        raise VerificationFailed("The version has no manifest, so nothing is known of its files.")
    _names_check(directory, files)
    total = sum(int(file["size_bytes"]) for file in files.values())
    done = 0
    for name, expected in files.items():
        path = directory / name
        size_bytes = path.stat().st_size
        if size_bytes != expected["size_bytes"]:
            raise VerificationFailed(
                f"{name} has {size_bytes:,} bytes; the manifest says {expected['size_bytes']:,}."
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                on_bytes(done, total)
        if digest.hexdigest() != expected["sha256"]:
            raise VerificationFailed(
                f"{name} was altered: its SHA-256 is {digest.hexdigest()[:12]}…; "
                f"the manifest says {expected['sha256'][:12]}…."
            )
    seen = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    if seen != manifest_sha256:
        raise VerificationFailed(
            f"{MANIFEST} was altered: its SHA-256 is {seen[:12]}…; "
            f"it was imported with {manifest_sha256[:12]}…."
        )
    return done


def _names_check(directory: Path, files: Mapping[str, Any]) -> None:
    """Only what a manifest lists may lie there: any other file could change what a model says."""
    if not directory.is_dir():
        raise VerificationFailed(f"{directory.name} is missing: there is no such directory.")
    there = {path.name: path for path in directory.iterdir()}
    for name in [*files, MANIFEST]:
        path = there.pop(name, None)
        if path is None or path.is_symlink() or not path.is_file():
            raise VerificationFailed(f"{name} is missing, or is no plain file.")
    if there:
        raise VerificationFailed(f"{min(there)} is not in the manifest.")
