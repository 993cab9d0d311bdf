"""What a route may set where a request says nothing, and the bounds of each value: those that an
engine holds requests to, so that no default makes a request fail that its client left open."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Number = int | float


@dataclass(frozen=True, slots=True)
class _Bounds:
    """is_open: the least is the first that is not taken."""

    least: Number
    most: Number
    is_whole: bool = False
    is_open: bool = False

    def problem(self, value: Any) -> str | None:
        kinds = (int,) if self.is_whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and self._holds(value):
            return None
        kind = "a whole number" if self.is_whole else "a number"
        least = f"above {self.least:g}" if self.is_open else f"from {self.least:g}"
        return f"must be {kind} {least} to {self.most:,}, not {value!r:.40}."

    def _holds(self, value: Number) -> bool:
        is_enough = value > self.least if self.is_open else value >= self.least
        return is_enough and value <= self.most


_BOUNDS: Final[Mapping[str, _Bounds]] = {
    "temperature": _Bounds(0, 2),
    "top_p": _Bounds(0, 1, is_open=True),
    "top_k": _Bounds(0, 2**31 - 1, is_whole=True),
    "min_p": _Bounds(0, 1),
    "presence_penalty": _Bounds(-2, 2),
    "frequency_penalty": _Bounds(-2, 2),
    "repetition_penalty": _Bounds(0.01, 100),
    "max_tokens": _Bounds(1, 2**31 - 1, is_whole=True),
}


def defaults_problems(values: Any) -> list[str]:
    """Return what is wrong with a route's defaults, each by its name."""
    if not isinstance(values, Mapping):
        return ["Give names and values, such as temperature=0.2."]
    problems = []
    for name, value in values.items():
        if name not in _BOUNDS:
            problems.append(f"{str(name)[:40]!r} is none of {', '.join(_BOUNDS)}.")
        elif (problem := _BOUNDS[name].problem(value)) is not None:
            problems.append(f"{name} {problem}")
    return problems


def defaults_read(words: Iterable[str]) -> dict[str, Number]:
    """Return what words such as ``temperature=0.2`` say; whether it is within bounds is another
    question. Raises ValueError, whose text is for people."""
    found: dict[str, Number] = {}
    for word in words:
        name, mark, text = word.partition("=")
        if not mark:
            raise ValueError(f"{word[:40]!r} is not a name and a value, such as temperature=0.2.")
        if name in found:
            raise ValueError(f"{name} is there twice.")
        try:
            found[name] = int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise ValueError(f"{name} must be a number, not {text[:40]!r}.") from None
    return found


def defaults_said(values: Mapping[str, Number]) -> str:
    """Return the same as words, in the order of their names."""
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))
