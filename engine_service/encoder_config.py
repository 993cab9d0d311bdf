"""An embedding model's config.json and pooling.json, read into checked values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from engine_service.errors import ModelError
from engine_service.json_fields import JsonFields

Pooling = Literal["mean", "cls"]

# Architectures that turn a text into one vector; ``families`` has those that go on writing it.
ENCODERS: Final = ("BertModel",)
# Written by the converter from a model's sentence-transformers modules.
POOLING_NAME: Final = "pooling.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A model that reads a text in both directions, and how its vectors become one.

    n_positions: rows of the position table. max_input_tokens: most tokens of one text, special
    ones included. pooling: the mean over a text's vectors, or that of its first token.
    is_normalized: whether vectors are scaled to length 1.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_positions: int
    n_token_types: int
    layer_norm_eps: float
    max_input_tokens: int
    pooling: Pooling
    is_normalized: bool

    @classmethod
    def from_dir(cls, model_dir: Path) -> "EncoderConfig":
        """Read and check a model directory's configuration; raises ModelError."""
        fields = JsonFields.from_file(model_dir / "config.json")
        pooling = JsonFields.from_file(model_dir / POOLING_NAME)
        if fields.get("architectures") not in [[name] for name in ENCODERS]:
            raise fields.unsupported("architectures", why=f"these are: {', '.join(ENCODERS)}")
        _refuse_unimplemented(fields)
        if pooling.get("pooling") not in get_args(Pooling):
            raise pooling.unsupported("pooling")
        n_positions = fields.positive_int("max_position_embeddings")
        config = cls(
            architecture=cast("list[str]", fields.get("architectures"))[0],
            vocab_size=fields.positive_int("vocab_size"),
            hidden_size=fields.positive_int("hidden_size"),
            intermediate_size=fields.positive_int("intermediate_size"),
            n_layers=fields.positive_int("num_hidden_layers"),
            n_heads=fields.positive_int("num_attention_heads"),
            n_positions=n_positions,
            n_token_types=fields.positive_int("type_vocab_size"),
            layer_norm_eps=fields.positive_float("layer_norm_eps"),
            max_input_tokens=pooling.positive_int("max_input_tokens"),
            pooling=cast("Pooling", pooling.text("pooling")),
            is_normalized=pooling.flag("normalize", default=False),
        )
        if config.hidden_size % config.n_heads:
            raise fields.wrong("num_attention_heads", expected="a divisor of hidden_size")
        if config.max_input_tokens > n_positions:
            raise pooling.wrong("max_input_tokens", expected=f"at most {n_positions}")
        return config

    def served_input_tokens(self, max_model_len: int | None) -> int:
        """Return the most tokens of one text where ``max_model_len`` bounds them further.

        Raises:
            ModelError: it was set beyond what the model takes.
        """
        if max_model_len is not None and max_model_len > self.max_input_tokens:
            raise ModelError(
                f"max_model_len ({max_model_len}) is beyond the {self.max_input_tokens} tokens "
                "that the model takes"
            )
        return max_model_len or self.max_input_tokens


def is_encoder(model_dir: Path) -> bool:
    """Whether a model directory holds an embedding model; raises ModelError."""
    fields = JsonFields.from_file(model_dir / "config.json")
    return fields.get("architectures") in [[name] for name in ENCODERS]


def _refuse_unimplemented(fields: JsonFields) -> None:
    fields.refuse_others(
        {
            "hidden_act": ("gelu",),
            "position_embedding_type": (None, "absolute"),
            "is_decoder": (None, False),
            "add_cross_attention": (None, False),
            "quantization_config": (None,),
            "auto_map": (None,),
        }
    )
