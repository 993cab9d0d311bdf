"""Reads the sizes of a model's parts from its ``config.json``. Knows no database."""

import functools
import json
from pathlib import Path
from typing import Any, Final

from apps.registry.types import ModelShape

_MOST_BYTES: Final = 1 << 20


def shape_read(config: Path) -> ModelShape | None:
    """Return the sizes; None where the file is missing or says none that an engine could use."""
    try:
        status = config.stat()
    except OSError:
        return None
    if status.st_size > _MOST_BYTES:
        return None
    return _read(config, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(config: Path, mtime_ns: int) -> ModelShape | None:
    try:
        return _shape(json.loads(config.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _shape(fields: dict[str, Any]) -> ModelShape | None:
    hidden, n_heads = fields["hidden_size"], fields["num_attention_heads"]
    sizes = {
        "n_layers": fields["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": fields.get("num_key_value_heads") or n_heads,
        "head_dim": fields.get("head_dim") or hidden // n_heads,
        "hidden_size": hidden,
        "intermediate_size": fields["intermediate_size"],
        "vocab_size": fields["vocab_size"],
    }
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    return ModelShape(**sizes)
