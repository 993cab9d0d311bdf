"""Builds the parts that several families read alike from a model's tensors, or a shard's."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder, DecoderLayer
from engine_service.layers.embedding import Embedding
from engine_service.layers.feed_forward import FeedForward
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.rotary_embedding import RotaryEmbedding
from engine_service.models.weights import Part, WeightReader


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
    head = _head(config, weights, embedding=embedding)
    is_tied = config.tie_word_embeddings
    weights.finish(ignored=frozenset({"lm_head.weight"}) if is_tied else frozenset())
    return Decoder(
        embedding=Embedding(embedding),
        layers=layers,
        norm=norm,
        head=Linear(weights.matrix(head)),
        rotary=RotaryEmbedding(
            config.rotary, head_dim=config.head_dim, max_model_len=max_model_len, dtype=dtype
        ),
    )


def read_attention(
    config: ModelConfig,
    weights: WeightReader,
    *,
    prefix: str,
    has_bias: bool = False,
    q_norm: RMSNorm | None = None,
    k_norm: RMSNorm | None = None,
) -> Attention:
    """Read the heads of the reader's shard, q, k and v fused, with the biases of a family that has
    them."""
    shard, head_dim = weights.shard, config.head_dim
    local = shard.of(config)
    q_size, kv_size = config.n_heads * head_dim, config.n_kv_heads * head_dim
    kv_heads = shard.kv_heads(config.n_kv_heads)
    kv_rows = slice(kv_heads.start * head_dim, kv_heads.stop * head_dim)
    parts = [
        (f"{prefix}q_proj", q_size, shard.part(q_size)),
        (f"{prefix}k_proj", kv_size, kv_rows),
        (f"{prefix}v_proj", kv_size, kv_rows),
    ]
    weight = weights.matrix(
        weights.take_stacked(
            *(
                Part(f"{name}.weight", (size, config.hidden_size), rows)
                for name, size, rows in parts
            )
        )
    )
    bias = None
    if has_bias:
        bias = weights.take_stacked(
            *(Part(f"{name}.bias", (size,), rows) for name, size, rows in parts)
        )
    output = weights.matrix(
        weights.take(
            f"{prefix}o_proj.weight",
            shape=(config.hidden_size, q_size),
            columns=shard.part(q_size),
        )
    )
    return Attention(
        qkv=Linear(weight, bias=bias),
        output=Linear(output),
        n_heads=local.n_heads,
        n_kv_heads=local.n_kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
    )


def _head(config: ModelConfig, weights: WeightReader, *, embedding: Tensor) -> Tensor:
    """Return the rows of the reader's shard; a tied head is the embedding, or a view of its rows
    where none is padded."""
    shard, n_vocab = weights.shard, config.vocab_size
    rows = shard.vocab_rows(n_vocab)
    if config.tie_word_embeddings:
        part = embedding if shard.n_ranks == 1 else embedding[rows]
    else:
        part = weights.take_stacked(Part("lm_head.weight", tuple(embedding.shape), rows))
    n_padding = shard.n_vocab_rows(n_vocab) - len(part)
    return functional.pad(part, (0, 0, 0, n_padding)) if n_padding else part


def _norm(config: ModelConfig, weights: WeightReader, *, name: str) -> RMSNorm:
    weight = weights.take(f"{name}.weight", shape=(config.hidden_size,))
    return RMSNorm(weight=weight, eps=config.rms_norm_eps)


def _feed_forward(config: ModelConfig, weights: WeightReader, *, prefix: str) -> FeedForward:
    hidden, inner = config.hidden_size, config.intermediate_size
    part = weights.shard.part(inner)
    gate_up = weights.matrix(
        weights.take_stacked(
            Part(f"{prefix}gate_proj.weight", (inner, hidden), part),
            Part(f"{prefix}up_proj.weight", (inner, hidden), part),
        )
    )
    down = weights.matrix(
        weights.take(f"{prefix}down_proj.weight", shape=(hidden, inner), columns=part)
    )
    return FeedForward(gate_up=Linear(gate_up), down=Linear(down))
