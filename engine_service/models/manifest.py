"""The manifest of a model directory: what it holds, byte for byte, and where it came from.

Written once by the converter, verified at every load. Knows files, not tensors.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine_service.errors import ModelError

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_CHUNK_BYTES = 1 << 20


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one file must be."""

    sha256: str
    size_bytes: int


class ManifestSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The artifact a directory was converted from."""

    name: str
    sha256: str


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a catalogue shows about a model."""

    architecture: str
    n_parameters: int
    context_length: int
    vocab_size: int
    dtype: str
    license: str
    source: ManifestSource


class Manifest(ModelFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``files`` lists every file of the directory but the manifest itself."""

    format: int
    files: dict[str, ManifestFile]


def write_manifest(directory: Path, facts: ModelFacts) -> Manifest:
    """List and hash every file of a flat ``directory`` and write its manifest."""
    files = {
        path.name: ManifestFile(sha256=hash_file(path), size_bytes=path.stat().st_size)
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST_NAME
    }
    manifest = Manifest(
        format=1,
        files=files,
        **{name: getattr(facts, name) for name in ModelFacts.__struct_fields__},
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST_NAME).write_bytes(encoded + b"\n")
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Parse the manifest without touching the files it lists. Raises ModelError."""
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ModelError(f"{path} is larger than a manifest can be")
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ModelError(
            f"{directory} has no readable {MANIFEST_NAME}: {error.strerror}"
        ) from error
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path} is not a valid manifest: {error}") from error
    if manifest.format != 1:
        raise ModelError(f"{path} has format {manifest.format}; this engine reads format 1")
    for name in manifest.files:
        if name in {"", ".", "..", MANIFEST_NAME} or "/" in name or "\0" in name:
            raise ModelError(f"{path} lists {name!r}, which is not a file name")
    return manifest


def verify_manifest(directory: Path) -> Manifest:
    """Check every listed file by size and SHA-256, and that nothing else lies about.

    A template or tokenizer file that is not listed would change what the model says.
    """
    manifest = read_manifest(directory)
    for path in directory.iterdir():
        if path.name not in manifest.files and path.name != MANIFEST_NAME:
            raise ModelError(f"{path} is not listed in the manifest")
    for name, expected in manifest.files.items():
        _verify_file(directory / name, expected)
    return manifest


def hash_file(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; ``on_bytes`` hears how much each read brought."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()


def _verify_file(path: Path, expected: ManifestFile) -> None:
    if path.is_symlink() or not path.is_file():
        raise ModelError(f"{path} is missing or not a plain file")
    size_bytes = path.stat().st_size
    if size_bytes != expected.size_bytes:
        raise ModelError(f"{path} has {size_bytes} bytes; the manifest says {expected.size_bytes}")
    if hash_file(path) != expected.sha256:
        raise ModelError(f"{path} was altered: its SHA-256 differs from the manifest")
