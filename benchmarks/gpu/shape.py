"""The model that is measured: its dimensions, and what a token of it weighs. Knows no torch."""

from dataclasses import dataclass
from typing import Any, Final

N_BYTES: Final = 2  # of a number: bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen3 with a tied head."""

    name: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int

    @property
    def n_layer_weights(self) -> int:
        """Return how many numbers the products of one layer multiply with."""
        attention = (2 * self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        return self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def n_head_weights(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def weight_bytes(self) -> int:
        """Return what one step reads of the weights; norms are too few to count."""
        return N_BYTES * (self.n_layers * self.n_layer_weights + self.n_head_weights)

    @property
    def kv_token_bytes(self) -> int:
        """Return what K and V of one token take in all layers."""
        return N_BYTES * 2 * self.n_layers * self.n_kv_heads * self.head_dim

    def as_config(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "dtype": "bfloat16",
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": 257,
        }


QWEN3_0_6B: Final = Shape(
    name="qwen3-0.6b",
    hidden_size=1024,
    n_layers=28,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151_936,
    context_length=40_960,
)
# For a run without a GPU.
TINY: Final = Shape(
    name="tiny",
    hidden_size=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=320,
    context_length=2048,
)
SHAPES: Final = {shape.name: shape for shape in (QWEN3_0_6B, TINY)}
