"""Typed reads of GGUF metadata; every complaint names the key."""

from collections.abc import Mapping

import numpy as np

from engine_service.convert.errors import ConversionError
from engine_service.convert.gguf_reader import Numbers, Value

Metadata = Mapping[str, Value]


def text(metadata: Metadata, key: str, *, default: str | None = None) -> str:
    """A text; without a default it must be there."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise ConversionError(f"{key} is missing or not a text", field=key)
    return value


def integer(metadata: Metadata, key: str, *, default: int | None = None) -> int:
    """One whole number; without a default it must be there."""
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConversionError(f"{key} is missing or not one whole number", field=key)
    return value


def positive_real(metadata: Metadata, key: str, *, default: float | None = None) -> float:
    """A float32 as the decimal number it was written as: 1e-05, not 9.999999747378752e-06."""
    value = metadata.get(key, default)
    if not isinstance(value, float) or not 0 < value < 1e9:
        raise ConversionError(f"{key} is missing or not a positive number", field=key)
    return float(str(np.float32(value)))


def flag(metadata: Metadata, key: str) -> bool:
    """True or false; false where it is missing."""
    value = metadata.get(key, False)
    if not isinstance(value, bool):
        raise ConversionError(f"{key} is neither true nor false", field=key)
    return value


def texts(metadata: Metadata, key: str) -> list[str]:
    """A list of at least one text."""
    value = metadata.get(key)
    if not isinstance(value, list) or not value:
        raise ConversionError(f"{key} is missing or not a list of texts", field=key)
    return value


def numbers(metadata: Metadata, key: str) -> Numbers:
    """An array of numbers."""
    value = metadata.get(key)
    if not isinstance(value, np.ndarray):
        raise ConversionError(f"{key} is missing or not a list of numbers", field=key)
    return value
