"""Small files of a model directory: bounded reading, JSON objects, and what is never touched."""

import json
from pathlib import Path
from typing import Any

from engine_service.convert.errors import ConversionError
from engine_service.models.manifest import PICKLE_SUFFIXES

MAX_JSON_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 1 << 27


def plain_files(directory: Path) -> dict[str, Path]:
    """The files directly in ``directory`` by name. Links and pickled checkpoints are refused."""
    files: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        refuse_link(path)
        refuse_pickle(path)
        if path.is_file() and not path.name.startswith("."):
            files[path.name] = path
    return files


def model_files(directory: Path) -> dict[str, Path]:
    """``plain_files``, and those that configure the modules of a model, one folder deeper, as
    ``folder/config.json``."""
    files = plain_files(directory)
    for folder in sorted(directory.iterdir()):
        config = folder / "config.json"
        if folder.is_dir() and config.is_file():
            refuse_link(config)
            files[f"{folder.name}/config.json"] = config
    return files


def refuse_link(path: Path) -> None:
    """A link could lead out of the directory that was checked."""
    if path.is_symlink():
        raise ConversionError(f"{path.name} is a symbolic link", field=path.name)


def refuse_pickle(path: Path) -> None:
    """Reading a pickle runs the code in it."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ConversionError(
            f"{path.name} is a pickled checkpoint, which can run code; use safetensors",
            field=path.name,
        )


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """A whole small file; a larger one is refused before it is read."""
    size_bytes = path.stat().st_size
    if size_bytes > max_bytes:
        raise ConversionError(
            f"{path.name} has {size_bytes} bytes; at most {max_bytes} are read", field=path.name
        )
    return path.read_bytes()


def parse_json_object(data: bytes, *, name: str) -> dict[str, Any]:
    """A JSON object, or the reason why it is none."""
    try:
        value = json.loads(data, object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{name} is not valid JSON: {error}", field=name) from error
    if not isinstance(value, dict):
        raise ConversionError(f"{name} is not a JSON object", field=name)
    return value


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice, readers do not agree which one counts."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} appears twice")
    return value


def json_bytes(value: object) -> bytes:
    """JSON as the model directory's files are written."""
    try:
        return json.dumps(value, indent=2).encode() + b"\n"
    except RecursionError as error:
        raise ConversionError("a JSON file is nested too deeply", field="json") from error
