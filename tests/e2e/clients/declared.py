"""Checks bodies against the types that a client library declares, more strictly than it does: what
is required is there, values are of their kinds, and no field goes undeclared unless it is known."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter


def check(body: Any, declared: Any, *, extras: frozenset[str] = frozenset()) -> None:
    """Raise ValidationError, or AssertionError naming fields that ``declared`` does not know.

    extras: fields of ours, which the documentation speaks of.
    """
    found = TypeAdapter(declared).validate_python(body)
    undeclared = set(_undeclared(found)) - extras
    assert not undeclared, f"{sorted(undeclared)} in {json.dumps(body)[:500]}"


def events_of(text: str) -> list[Any]:
    """Return the data of server-sent events; what is no JSON as text."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        data = [line[6:] for line in block.splitlines() if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return found


def _undeclared(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _undeclared(getattr(value, name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _undeclared(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _undeclared(each)
