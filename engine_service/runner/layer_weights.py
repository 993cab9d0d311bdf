"""The weights of a decoder's layer, as the steps on a device take them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from engine_service.kernels.quantization import Matrix
from engine_service.layers.decoder import DecoderLayer
from engine_service.layers.linear import Linear

_M_co = TypeVar("_M_co", bound=Matrix, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights(Generic[_M_co]):
    """Its matrices are of one kind: what multiplies by tensors takes ``LayerWeights[Tensor]``."""

    attention_norm: Tensor
    qkv: _M_co
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: _M_co
    feed_forward_norm: Tensor
    gate_up: _M_co
    down: _M_co

    @staticmethod
    def of(layer: DecoderLayer, *, take: Callable[[Linear], _M_co]) -> "LayerWeights[_M_co]":
        attention, feed_forward = layer.attention, layer.feed_forward
        return LayerWeights(
            attention_norm=layer.attention_norm.weight,
            qkv=take(attention.qkv),
            qkv_bias=attention.qkv.bias,
            q_norm=None if attention.q_norm is None else attention.q_norm.weight,
            k_norm=None if attention.k_norm is None else attention.k_norm.weight,
            output=take(attention.output),
            feed_forward_norm=layer.feed_forward_norm.weight,
            gate_up=take(feed_forward.gate_up),
            down=take(feed_forward.down),
        )
