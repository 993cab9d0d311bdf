"""What both kinds of source come down to: a configuration, files, and tensors to read.

The table of a model's tensors lives here; a source with one missing, too many or misshapen is
refused before anything is written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from engine_service.convert.errors import ConversionError
from engine_service.families import FAMILIES

BFLOAT16 = "bfloat16"
FLOAT32 = "float32"
# Raw elements of the stored type: float32, or bfloat16 as its 16 bits.
RawTensor = npt.NDArray[Any]

_LIMITS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
}


class Shape(Protocol):
    """What the numbers of a configuration say of a model."""

    @property
    def architecture(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int:
        """Most tokens that the model takes at once."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order in which they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that decide every tensor's shape; field names are Hugging Face's."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        check_limits({name: getattr(self, name) for name in _LIMITS}, limits=_LIMITS)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConversionError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}",
                field="num_key_value_heads",
            )

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    def tensors(self) -> dict[str, tuple[int, ...]]:
        family = FAMILIES[self.architecture]
        hidden, inner = self.hidden_size, self.intermediate_size
        q_rows = self.num_attention_heads * self.head_dim
        kv_rows = self.num_key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q_rows, hidden),
            "self_attn.k_proj.weight": (kv_rows, hidden),
            "self_attn.v_proj.weight": (kv_rows, hidden),
            "self_attn.o_proj.weight": (hidden, q_rows),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if family.qkv_bias:
            for part, n_rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
                layer[f"self_attn.{part}_proj.bias"] = (n_rows,)
        if family.qk_norm:
            layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (self.head_dim,)
        tensors: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden)
        }
        for index in range(self.num_hidden_layers):
            for part, shape in layer.items():
                tensors[f"model.layers.{index}.{part}"] = shape
        tensors["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            tensors["lm_head.weight"] = (self.vocab_size, hidden)
        return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A source that passed its checks; ``read`` gives one tensor in ``dtype``, row-major."""

    shape: Shape
    dtype: str
    license: str
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    read: Callable[[str], RawTensor]


def check_limits(values: Mapping[str, Any], *, limits: Mapping[str, int]) -> None:
    """Refuse by name a number that is none, or that no model has."""
    for name, limit in limits.items():
        value = values[name]
        if type(value) is not int or not 1 <= value <= limit:
            raise ConversionError(
                f"{name} is {value!r}; a whole number from 1 to {limit} is expected", field=name
            )


def check_tensors(*, found: Mapping[str, tuple[int, ...]], shape: Shape) -> None:
    """Refuse a source whose tensors are not exactly those of the model."""
    expected = shape.tensors()
    for name, expected_shape in expected.items():
        if name not in found:
            raise ConversionError(f"tensor {name!r} is missing", field=name)
        if found[name] != expected_shape:
            raise ConversionError(
                f"tensor {name!r} has shape {found[name]}; {expected_shape} is expected",
                field=name,
            )
    for name in found:
        if name not in expected:
            raise ConversionError(
                f"tensor {name!r} is no part of a supported {shape.architecture}", field=name
            )
