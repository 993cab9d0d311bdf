"""The Llama family: RMSNorm, rotary positions, grouped K/V heads, a gated feed-forward layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.embedding import Embedding
from engine_service.layers.feed_forward import FeedForward
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.rotary_embedding import RotaryEmbedding
from engine_service.layers.step_input import StepInput
from engine_service.models.weights import WeightReader


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


class LlamaModel:
    """Weights in the engine's dtype, projections of one input fused."""

    def __init__(
        self, config: ModelConfig, *, weights: WeightReader, max_model_len: int, dtype: torch.dtype
    ) -> None:
        embedding_shape = (config.vocab_size, config.hidden_size)
        embedding = weights.take("model.embed_tokens.weight", shape=embedding_shape)
        self._embedding = Embedding(embedding)
        self._layers = [
            _decoder_layer(config, weights=weights, prefix=f"model.layers.{index}.")
            for index in range(config.n_layers)
        ]
        self._norm = _norm(config, weights=weights, name="model.norm.weight")
        if config.tie_word_embeddings:
            self._head = Linear(embedding)
            weights.finish(ignored=frozenset({"lm_head.weight"}))
        else:
            self._head = Linear(weights.take("lm_head.weight", shape=embedding_shape))
            weights.finish(ignored=frozenset())
        self._rotary = RotaryEmbedding(
            head_dim=config.head_dim,
            theta=config.rope_theta,
            max_model_len=max_model_len,
            dtype=dtype,
        )

    def forward(self, step: StepInput, *, caches: Sequence[Tensor]) -> Tensor:
        """Return the float32 logits of the sampled tokens; K and V of all go to the caches."""
        x = self._embedding(step.token_ids)
        rotary = self._rotary(step.positions)
        for layer, cache in zip(self._layers, caches, strict=True):
            x = layer(x, step=step, rotary=rotary, cache=cache)
        return self._head(self._norm(x[step.sampled])).float()


def _norm(config: ModelConfig, *, weights: WeightReader, name: str) -> RMSNorm:
    return RMSNorm(weight=weights.take(name, shape=(config.hidden_size,)), eps=config.rms_norm_eps)


def _decoder_layer(config: ModelConfig, *, weights: WeightReader, prefix: str) -> DecoderLayer:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention = Attention(
        qkv=Linear(
            weights.take_stacked(
                (f"{prefix}self_attn.q_proj.weight", (q_size, hidden)),
                (f"{prefix}self_attn.k_proj.weight", (kv_size, hidden)),
                (f"{prefix}self_attn.v_proj.weight", (kv_size, hidden)),
            )
        ),
        output=Linear(weights.take(f"{prefix}self_attn.o_proj.weight", shape=(hidden, q_size))),
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
    )
    feed_forward = FeedForward(
        gate_up=Linear(
            weights.take_stacked(
                (f"{prefix}mlp.gate_proj.weight", (inner, hidden)),
                (f"{prefix}mlp.up_proj.weight", (inner, hidden)),
            )
        ),
        down=Linear(weights.take(f"{prefix}mlp.down_proj.weight", shape=(hidden, inner))),
    )
    return DecoderLayer(
        attention_norm=_norm(config, weights=weights, name=f"{prefix}input_layernorm.weight"),
        attention=attention,
        feed_forward_norm=_norm(
            config, weights=weights, name=f"{prefix}post_attention_layernorm.weight"
        ),
        feed_forward=feed_forward,
    )
