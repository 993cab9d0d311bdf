"""Typed reads from a JSON object that others wrote; every complaint names file and field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine_service.errors import ModelError

MAX_CONFIG_BYTES: Final = 1024 * 1024


class JsonFields:
    """``where`` names the object in complaints: its file, and the field that holds it."""

    def __init__(self, values: Mapping[str, object], *, where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def from_file(cls, path: Path) -> "JsonFields":
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a JSON object")
        return cls(values, where=str(path))

    def get(self, name: str) -> object:
        return self.values.get(name)

    def nested(self, name: str) -> "JsonFields | None":
        """Return an object within this one; None where it is absent, null or empty."""
        value = self.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, expected="an object")
        return JsonFields(value, where=f"{self.where}: {name}")

    def positive_int(self, name: str, *, default: int | None = None) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, expected="a positive integer")
        return value

    def positive_float(self, name: str, *, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, expected="a positive number")
        if not 0.0 < value < float("inf"):
            raise self.wrong(name, expected="a positive number")
        try:
            return float(value)
        except OverflowError as error:
            raise self.wrong(name, expected="a positive number") from error

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, expected="true or false")
        return value

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, expected="a string")
        return value

    def refuse_others(self, allowed: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse by name every field of ``allowed`` that has another value than those there."""
        for name, values in allowed.items():
            if self.get(name) not in values:
                raise self.unsupported(name)

    def wrong(self, name: str, *, expected: str) -> ModelError:
        return ModelError(f"{self.where}: {name} must be {expected}, not {self.get(name)!r}")

    def unsupported(self, name: str, *, why: str = "") -> ModelError:
        reason = f": {why}" if why else ""
        return ModelError(
            f"{self.where}: {name}={self.get(name)!r} is not supported by this engine{reason}"
        )
