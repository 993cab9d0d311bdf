"""Builds the parts that several families read alike from a model's tensors."""

from collections.abc import Callable

import torch

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder, DecoderLayer
from engine_service.layers.embedding import Embedding
from engine_service.layers.feed_forward import FeedForward
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.rotary_embedding import RotaryEmbedding
from engine_service.models.weights import WeightReader


def read_decoder(
    config: ModelConfig,
    *,
    weights: WeightReader,
    max_model_len: int,
    dtype: torch.dtype,
    read_attention: Callable[[str], Attention],
) -> Decoder:
    """Read a whole decoder; ``read_attention`` reads the attention below a prefix of names."""
    embedding_shape = (config.vocab_size, config.hidden_size)
    embedding = weights.take("model.embed_tokens.weight", shape=embedding_shape)
    layers = []
    for index in range(config.n_layers):
        prefix = f"model.layers.{index}."
        layers.append(
            DecoderLayer(
                attention_norm=_norm(config, weights, name=f"{prefix}input_layernorm"),
                attention=read_attention(f"{prefix}self_attn."),
                feed_forward_norm=_norm(config, weights, name=f"{prefix}post_attention_layernorm"),
                feed_forward=_feed_forward(config, weights, prefix=f"{prefix}mlp."),
            )
        )
    norm = _norm(config, weights, name="model.norm")
    if config.tie_word_embeddings:
        head = embedding
        weights.finish(ignored=frozenset({"lm_head.weight"}))
    else:
        head = weights.take("lm_head.weight", shape=embedding_shape)
        weights.finish(ignored=frozenset())
    return Decoder(
        embedding=Embedding(embedding),
        layers=layers,
        norm=norm,
        head=Linear(head),
        rotary=RotaryEmbedding(
            config.rotary, head_dim=config.head_dim, max_model_len=max_model_len, dtype=dtype
        ),
    )


def read_qkv(config: ModelConfig, weights: WeightReader, *, prefix: str, has_bias: bool) -> Linear:
    """Read the projections of q, k and v, fused, with the biases of a family that has them."""
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    sizes = {f"{prefix}q_proj": q_size, f"{prefix}k_proj": kv_size, f"{prefix}v_proj": kv_size}
    weight = weights.take_stacked(
        *((f"{name}.weight", (size, config.hidden_size)) for name, size in sizes.items())
    )
    bias = None
    if has_bias:
        bias = weights.take_stacked(*((f"{name}.bias", (size,)) for name, size in sizes.items()))
    return Linear(weight, bias=bias)


def read_attention_output(config: ModelConfig, weights: WeightReader, *, prefix: str) -> Linear:
    shape = (config.hidden_size, config.n_heads * config.head_dim)
    return Linear(weights.take(f"{prefix}o_proj.weight", shape=shape))


def _norm(config: ModelConfig, weights: WeightReader, *, name: str) -> RMSNorm:
    weight = weights.take(f"{name}.weight", shape=(config.hidden_size,))
    return RMSNorm(weight=weight, eps=config.rms_norm_eps)


def _feed_forward(config: ModelConfig, weights: WeightReader, *, prefix: str) -> FeedForward:
    hidden, inner = config.hidden_size, config.intermediate_size
    return FeedForward(
        gate_up=Linear(
            weights.take_stacked(
                (f"{prefix}gate_proj.weight", (inner, hidden)),
                (f"{prefix}up_proj.weight", (inner, hidden)),
            )
        ),
        down=Linear(weights.take(f"{prefix}down_proj.weight", shape=(hidden, inner))),
    )
