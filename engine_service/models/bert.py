"""BERT (https://arxiv.org/abs/1810.04805): learned positions, GELU, normalised after each part.

Its pooler, made for another task than embedding, is left out at import.
"""

from engine_service.encoder_config import EncoderConfig
from engine_service.layers.encoder import Encoder, EncoderLayer
from engine_service.layers.layernorm import LayerNorm
from engine_service.layers.linear import Linear
from engine_service.models.weights import Part, WeightReader


def read_bert(config: EncoderConfig, *, weights: WeightReader) -> Encoder:
    """Take every tensor; raises ModelError for one missing, misshapen or unknown."""
    hidden = config.hidden_size
    tokens = weights.take("embeddings.word_embeddings.weight", shape=(config.vocab_size, hidden))
    positions = weights.take(
        "embeddings.position_embeddings.weight", shape=(config.n_positions, hidden)
    )
    types = weights.take(
        "embeddings.token_type_embeddings.weight", shape=(config.n_token_types, hidden)
    )
    encoder = Encoder(
        tokens=tokens,
        # A text that stands alone is all of the first type.
        positions=positions + types[0],
        norm=_norm(config, weights, name="embeddings.LayerNorm"),
        layers=[
            _layer(config, weights, prefix=f"encoder.layer.{index}.")
            for index in range(config.n_layers)
        ],
    )
    weights.finish(ignored=frozenset())
    return encoder


def _layer(config: EncoderConfig, weights: WeightReader, *, prefix: str) -> EncoderLayer:
    hidden, inner = config.hidden_size, config.intermediate_size
    names = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    return EncoderLayer(
        qkv=Linear(
            weights.take_stacked(*(Part(f"{name}.weight", (hidden, hidden)) for name in names)),
            bias=weights.take_stacked(*(Part(f"{name}.bias", (hidden,)) for name in names)),
        ),
        output=_linear(weights, name=f"{prefix}attention.output.dense", shape=(hidden, hidden)),
        attention_norm=_norm(config, weights, name=f"{prefix}attention.output.LayerNorm"),
        up=_linear(weights, name=f"{prefix}intermediate.dense", shape=(inner, hidden)),
        down=_linear(weights, name=f"{prefix}output.dense", shape=(hidden, inner)),
        feed_forward_norm=_norm(config, weights, name=f"{prefix}output.LayerNorm"),
        n_heads=config.n_heads,
    )


def _linear(weights: WeightReader, *, name: str, shape: tuple[int, int]) -> Linear:
    return Linear(
        weights.take(f"{name}.weight", shape=shape),
        bias=weights.take(f"{name}.bias", shape=shape[:1]),
    )


def _norm(config: EncoderConfig, weights: WeightReader, *, name: str) -> LayerNorm:
    shape = (config.hidden_size,)
    return LayerNorm(
        weight=weights.take(f"{name}.weight", shape=shape),
        bias=weights.take(f"{name}.bias", shape=shape),
        eps=config.layer_norm_eps,
    )
