"""Opens what an operator names: a GGUF file, an archive that holds one model, or a directory."""

import hashlib
from contextlib import ExitStack
from pathlib import Path

from engine_service.convert.archives import ARCHIVE_SUFFIXES, OnBytes, is_archive, unpack_model
from engine_service.convert.checkpoint import Checkpoint
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import model_files, refuse_link, refuse_pickle
from engine_service.convert.gguf_reader import GgufFile
from engine_service.convert.gguf_source import open_gguf
from engine_service.convert.hf_source import open_hugging_face
from engine_service.models.manifest import ManifestSource, hash_file


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
    if path.suffix.lower() == ".gguf":
        return open_gguf(resources.enter_context(GgufFile(path)))
    if is_archive(path):
        model = unpack_model(path, scratch=scratch, on_bytes=on_bytes)
        return open_source(model, scratch=scratch, resources=resources, on_bytes=on_bytes)
    raise ConversionError(
        f"{path.name} is neither a .gguf file, an archive ({', '.join(ARCHIVE_SUFFIXES)}) nor "
        "a directory",
        field="source",
    )
