"""The manifest of a model directory: size and SHA-256 of every file, written once by the converter
and verified on every load. It knows files and bytes, not what a model is."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine_service.errors import ModelError

MANIFEST_NAME: Final = "manifest.json"
MANIFEST_FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 1024 * 1024
_HASH_CHUNK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """What one file must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """files: by name. facts: everything else that the manifest says, as written."""

    files: Mapping[str, ManifestFile]
    facts: Mapping[str, object]

    @property
    def architecture(self) -> str:
        return str(self.facts.get("architecture", ""))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(model_dir: Path, **facts: object) -> Manifest:
    """Describe every file of ``model_dir`` and write ``manifest.json`` into it, durably.

    Raises:
        ModelError: the directory holds something other than plain files.
    """
    files = {
        path.name: ManifestFile(sha256=hash_file(path), size_bytes=path.stat().st_size)
        for path in _plain_files(model_dir)
    }
    document = {
        "format": MANIFEST_FORMAT,
        "files": {
            name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes}
            for name, entry in sorted(files.items())
        },
        **facts,
    }
    target = model_dir / MANIFEST_NAME
    partial = model_dir / f".{MANIFEST_NAME}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return Manifest(files=files, facts=facts)


def read_manifest(model_dir: Path) -> Manifest:
    """Parse ``manifest.json`` without looking at the files that it names.

    Raises:
        ModelError: it is absent, too large, or not a manifest of this format.
    """
    path = model_dir / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"{model_dir} has no {MANIFEST_NAME}: import the model first")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ModelError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != MANIFEST_FORMAT:
        raise ModelError(f"{path} is not a manifest of format {MANIFEST_FORMAT}")
    files = document.get("files")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{path} lists no files")
    facts = {key: value for key, value in document.items() if key not in ("format", "files")}
    return Manifest(
        files={name: _parse_entry(path, name=name, entry=entry) for name, entry in files.items()},
        facts=facts,
    )


def verify_manifest(model_dir: Path) -> Manifest:
    """Return the manifest after checking that the directory holds exactly what it lists.

    Raises:
        ModelError: a file is missing, of another size, altered, or not listed.
    """
    manifest = read_manifest(model_dir)
    present = {path.name: path for path in _plain_files(model_dir)}
    for name in sorted(present.keys() - manifest.files.keys()):
        raise ModelError(f"{model_dir / name} is not listed in {MANIFEST_NAME}")
    for name, entry in manifest.files.items():
        path = present.get(name)
        if path is None:
            raise ModelError(f"{model_dir / name} is missing")
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise ModelError(f"{path} has {size_bytes} bytes, its manifest {entry.size_bytes}")
    for name, entry in manifest.files.items():
        if hash_file(present[name]) != entry.sha256:
            raise ModelError(f"{present[name]} was altered: its SHA-256 is not the manifest's")
    return manifest


def _plain_files(model_dir: Path) -> list[Path]:
    if not model_dir.is_dir():
        raise ModelError(f"{model_dir} is not a directory")
    paths = []
    for path in sorted(model_dir.iterdir()):
        if path.name == MANIFEST_NAME:
            continue
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"{path} is not a plain file")
        paths.append(path)
    return paths


def _parse_entry(path: Path, *, name: str, entry: object) -> ManifestFile:
    if not name or name in (".", "..", MANIFEST_NAME) or "/" in name or "\0" in name:
        raise ModelError(f"{path} lists {name!r}, which is not a file name")
    if isinstance(entry, dict):
        sha256, size_bytes = entry.get("sha256"), entry.get("size_bytes")
        if isinstance(sha256, str) and isinstance(size_bytes, int) and len(sha256) == 64:
            return ManifestFile(sha256=sha256, size_bytes=size_bytes)
    raise ModelError(f"{path}: the entry of {name!r} needs sha256 and size_bytes")
