"""Which rotary positions a model's configuration asks for, and how it stretches them.

Numbers only; the tables are made in ``layers.rotary_embedding``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from engine_service.json_fields import JsonFields

DEFAULT_THETA: Final = 10_000.0
_COMMON: Final = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """All positions divided by ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Only waves long beside the original context are stretched, with a blend between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Yarn (https://arxiv.org/abs/2309.00071): a blend by rotations within the original context.

    attention_factor: multiplies cos and sin. beta_fast, beta_slow: rotations from which on nothing,
    and up to which everything, is stretched. truncate: the ramp begins and ends at whole numbers.
    """

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_context: int
    truncate: bool


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    theta: float
    scaling: RotaryScaling | None = None


def read_rotary(fields: JsonFields) -> RotaryConfig:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``.

    Raises:
        ModelError: a variant or a parameter that is not implemented, by name.
    """
    fields.refuse_others({"partial_rotary_factor": (None, 1.0)})
    current, legacy = fields.nested("rope_parameters"), fields.nested("rope_scaling")
    if current and legacy and current.values != legacy.values:
        raise fields.unsupported("rope_scaling", why="rope_parameters differs")
    parameters = current or legacy
    if parameters is None:
        return RotaryConfig(theta=fields.positive_float("rope_theta", default=DEFAULT_THETA))
    name = "rope_parameters" if current else "rope_scaling"
    kind = parameters.text("rope_type" if "rope_type" in parameters.values else "type")
    if kind not in _VARIANTS:
        raise fields.unsupported(name, why=f"of the variants, {', '.join(_VARIANTS)} are")
    known, read = _VARIANTS[kind]
    for key in parameters.values.keys() - known - _COMMON:
        raise parameters.unsupported(key, why=f"no part of {kind}")
    parameters.refuse_others({"partial_rotary_factor": (None, 1.0)})
    where_theta = parameters if parameters.get("rope_theta") is not None else fields
    # The newer form always states the base somewhere; the older one has a default.
    theta = where_theta.positive_float("rope_theta", default=None if current else DEFAULT_THETA)
    return RotaryConfig(theta=theta, scaling=read(parameters, fields))


def _read_default(parameters: JsonFields, fields: JsonFields) -> None:
    return None


def _read_linear(parameters: JsonFields, fields: JsonFields) -> LinearScaling:
    return LinearScaling(factor=_factor(parameters))


def _read_llama3(parameters: JsonFields, fields: JsonFields) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=_factor(parameters),
        low_freq_factor=parameters.positive_float("low_freq_factor"),
        high_freq_factor=parameters.positive_float("high_freq_factor"),
        original_context=_original_context(parameters, fields),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise parameters.wrong("high_freq_factor", expected="greater than low_freq_factor")
    return scaling


def _read_yarn(parameters: JsonFields, fields: JsonFields) -> YarnScaling:
    factor = _factor(parameters)
    scaling = YarnScaling(
        factor=factor,
        attention_factor=parameters.positive_float(
            "attention_factor", default=_yarn_attention_factor(parameters, factor=factor)
        ),
        beta_fast=parameters.positive_float("beta_fast", default=32.0),
        beta_slow=parameters.positive_float("beta_slow", default=1.0),
        original_context=_original_context(parameters, fields),
        truncate=parameters.flag("truncate", default=True),
    )
    if scaling.beta_slow > scaling.beta_fast:
        raise parameters.wrong("beta_slow", expected="at most beta_fast")
    return scaling


_Reader = Callable[[JsonFields, JsonFields], RotaryScaling | None]
_VARIANTS: Final[Mapping[str, tuple[frozenset[str], _Reader]]] = {
    "default": (frozenset(), _read_default),
    "linear": (frozenset({"factor"}), _read_linear),
    "llama3": (
        frozenset(
            {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
        ),
        _read_llama3,
    ),
    "yarn": (
        frozenset(
            {
                *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale"),
                *("mscale_all_dim", "original_max_position_embeddings", "truncate"),
            }
        ),
        _read_yarn,
    ),
}


def _factor(parameters: JsonFields) -> float:
    factor = parameters.positive_float("factor")
    if factor < 1.0:
        raise parameters.wrong("factor", expected="at least 1")
    return factor


def _original_context(parameters: JsonFields, fields: JsonFields) -> int:
    """Beside the parameters, among them, or else the model's context; never two that differ."""
    name = "original_max_position_embeddings"
    inner, outer = parameters.get(name), fields.get(name)
    if inner is not None and outer is not None and inner != outer:
        raise parameters.wrong(name, expected=f"{outer!r} as in the configuration itself")
    if inner is None and outer is None:
        return fields.positive_int("max_position_embeddings")
    return (fields if inner is None else parameters).positive_int(name)


def _yarn_attention_factor(parameters: JsonFields, *, factor: float) -> float:
    """By default 0.1 ln(factor) + 1, as the paper proposes; some models give two weights."""
    given = [
        parameters.positive_float(name)
        for name in ("mscale", "mscale_all_dim")
        if parameters.get(name) not in (None, 0)
    ]
    if len(given) < 2:
        return 0.1 * math.log(factor) + 1.0
    over, under = (0.1 * weight * math.log(factor) + 1.0 for weight in given)
    return over / under
