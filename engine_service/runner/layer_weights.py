"""The weights of a decoder's layer, as the steps on a device take them."""

from dataclasses import dataclass

from torch import Tensor

from engine_service.layers.decoder import DecoderLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: DecoderLayer) -> "LayerWeights":
        attention, feed_forward = layer.attention, layer.feed_forward
        return cls(
            attention_norm=layer.attention_norm.weight,
            qkv=attention.qkv.take(),
            qkv_bias=attention.qkv.bias,
            q_norm=None if attention.q_norm is None else attention.q_norm.weight,
            k_norm=None if attention.k_norm is None else attention.k_norm.weight,
            output=attention.output.take(),
            feed_forward_norm=layer.feed_forward_norm.weight,
            gate_up=feed_forward.gate_up.take(),
            down=feed_forward.down.take(),
        )
