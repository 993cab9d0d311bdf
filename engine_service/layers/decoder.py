"""The decoder that the families share: attention and a gated feed-forward layer, normalised before.

A family's file says how its parts are read; the step through them is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine_service.layers.attention import Attention
from engine_service.layers.embedding import Embedding
from engine_service.layers.feed_forward import FeedForward
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.rotary_embedding import RotaryEmbedding
from engine_service.layers.step_input import StepInput


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    attention_norm: RMSNorm
    attention: Attention
    feed_forward_norm: RMSNorm
    feed_forward: FeedForward

    def __call__(
        self, x: Tensor, *, step: StepInput, rotary: tuple[Tensor, Tensor], cache: Tensor
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step=step, rotary=rotary, cache=cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Weights in the engine's dtype, projections of one input fused: the structure of a model.

    ``pack`` makes ready for ``forward``, or whoever computes otherwise takes the weights over.
    """

    embedding: Embedding
    layers: Sequence[DecoderLayer]
    norm: RMSNorm
    head: Linear
    rotary: RotaryEmbedding

    def pack(self) -> None:
        """Lay the weights out for the reference kernels."""
        for layer in self.layers:
            for linear in (layer.attention.qkv, layer.attention.output):
                linear.pack()
            for linear in (layer.feed_forward.gate_up, layer.feed_forward.down):
                linear.pack()
        self.head.pack()

    def forward(self, step: StepInput, *, caches: Sequence[Tensor]) -> Tensor:
        """Return the float32 logits of the sampled tokens; K and V of all go to the caches."""
        x = self.embedding(step.token_ids)
        rotary = self.rotary(step.positions)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, step=step, rotary=rotary, cache=cache)
        return self.head(self.norm(x[step.sampled])).float()
