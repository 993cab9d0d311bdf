"""Variants and metrics as words of a command line. Each function raises ValueError, whose text is
for the operator."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from apps.deployments.selectors import deployment_named
from apps.experiments.metrics import metric_of
from apps.experiments.types import MetricSpec, VariantSpec
from apps.routing.selectors import defaults_read, route_named

_PART: Final = re.compile(r":(?=[a-z_]+=)")  # names of routes may have colons
_BETTER: Final = ("higher", "lower")


def variant_read(word: str, *, control: str) -> VariantSpec:
    """Return what ``NAME=WEIGHT[:deployment=D|:route=R][:FIELD=VALUE ...][:template=FILE]`` says.

    control: the name of the one that is the control.
    """
    head, *parts = _PART.split(word)
    name, weight = _weighed(head)
    fields: dict[str, Any] = {}
    parameters = []
    for part in parts:
        key, _, value = part.partition("=")
        match key:
            case "deployment":
                fields["deployment"] = _found(deployment_named, "deployment", value)
            case "route":
                fields["other_route"] = _found(route_named, "route", value)
            case "template":
                fields["prompt_template"] = _text_of(value)
            case _:
                parameters.append(part)
    return VariantSpec(
        name=name,
        weight=weight,
        is_control=name == control,
        parameters=defaults_read(parameters),
        **fields,
    )


def weights_read(words: Sequence[str]) -> dict[str, int]:
    """Return what words such as ``b=80`` say."""
    return dict(_weighed(word) for word in words)


def metric_read(word: str, *, role: str) -> MetricSpec:
    """Return what ``METRIC[=higher|=lower][=TOLERANCE]`` says; else the metric's own direction."""
    key, *parts = word.split("=")
    fields: dict[str, Any] = {"better": metric_of(key).better}
    for part in parts:
        if part in _BETTER:
            fields["better"] = part
            continue
        try:
            fields["tolerance"] = float(part)
        except ValueError:
            raise ValueError(f"{word[:80]!r} is not as error_rate=0.1 or cost=lower.") from None
    return MetricSpec(metric=key, role=role, **fields)


def _weighed(word: str) -> tuple[str, int]:
    name, mark, weight = word.partition("=")
    if not mark or not weight.isdecimal() or len(weight) > 4:
        raise ValueError(f"{word[:60]!r} is not a name and a weight, such as b=50.")
    return name, int(weight)


def _found(look_up: Callable[[str], Any], kind: str, name: str) -> Any:
    found = look_up(name)
    if found is None:
        raise ValueError(f"There is no {kind} {name[:120]!r}.")
    return found


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file[:200]}: {error}") from None
