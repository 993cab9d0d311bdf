"""Reads which token each id is from a model's ``tokenizer.json``. Knows no database."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Final

_MOST_BYTES: Final = 128 << 20  # as the converter takes


def vocabulary_sha256(tokenizer: Path) -> str:
    """Return a SHA-256 that is the same for equal vocabularies, however their files say them; empty
    where the file is missing or says none."""
    try:
        status = tokenizer.stat()
    except OSError:
        return ""
    if status.st_size > _MOST_BYTES:
        return ""
    return _read(tokenizer, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(tokenizer: Path, mtime_ns: int) -> str:
    try:
        return _digest(_ids(json.loads(tokenizer.read_bytes())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def _ids(fields: dict[str, Any]) -> dict[str, int]:
    """Return the id of each token, as an engine compares them."""
    vocabulary = fields["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram model, with the score of each
        vocabulary = {entry[0]: token_id for token_id, entry in enumerate(vocabulary)}
    added = {each["content"]: each["id"] for each in fields.get("added_tokens") or []}
    return {**added, **vocabulary}


def _digest(ids: dict[str, int]) -> str:
    if not ids:
        return ""
    return hashlib.sha256(json.dumps(sorted(ids.items())).encode()).hexdigest()
