"""Settings of the engine process and the model's own config.json, read into checked values.

An option of a model that is not implemented is refused by name here, never passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engine_service.errors import ModelError

DTypeName = Literal["auto", "bfloat16", "float32"]
DTYPE_NAMES: Final = ("auto", "bfloat16", "float32")
MAX_CONFIG_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine process runs one model.

    dtype: ``auto`` is bfloat16 where the processor multiplies it natively, else float32.
    kv_cache_tokens: size of the KV pool. max_sequences: most sequences in one step.
    max_batched_tokens: most tokens in one step, decode and prefill together.
    max_model_len: None takes the model's context; both are bounded by the pool.
    n_threads: None leaves the choice to torch.
    """

    model_dir: Path
    dtype: DTypeName = "auto"
    block_size: int = 16
    kv_cache_tokens: int = 32768
    max_sequences: int = 64
    max_batched_tokens: int = 512
    max_model_len: int | None = None
    max_waiting: int = 256
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise ModelError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, not {self.dtype!r}")
        for name in ("block_size", "kv_cache_tokens", "max_sequences", "max_waiting"):
            _require_positive(name, getattr(self, name))
        for name in ("max_model_len", "n_threads"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.kv_cache_tokens < self.block_size:
            raise ModelError(
                f"kv_cache_tokens ({self.kv_cache_tokens}) must hold at least one block "
                f"of {self.block_size} tokens"
            )
        if self.max_batched_tokens < self.max_sequences:
            raise ModelError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be at least max_sequences "
                f"({self.max_sequences}), so that every sequence can decode in every step"
            )

    @property
    def n_blocks(self) -> int:
        return self.kv_cache_tokens // self.block_size

    def effective_max_model_len(self, context_length: int) -> int:
        """Return the most tokens of prompt and answer together.

        Raises:
            ModelError: ``max_model_len`` was set beyond the model's context.
        """
        if self.max_model_len is not None and self.max_model_len > context_length:
            raise ModelError(
                f"max_model_len ({self.max_model_len}) is beyond the model's context "
                f"of {context_length} tokens"
            )
        return min(self.max_model_len or context_length, self.n_blocks * self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-family model as its config.json and generation_config.json describe it."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int
    tie_word_embeddings: bool
    eos_token_ids: frozenset[int]

    @classmethod
    def from_dir(cls, model_dir: Path) -> "ModelConfig":
        """Read and check a model directory's configuration; raises ModelError."""
        fields = _Fields(model_dir / "config.json")
        generation_path = model_dir / "generation_config.json"
        generation = _Fields(generation_path) if generation_path.exists() else None
        _refuse_unimplemented(fields)
        n_heads = fields.positive_int("num_attention_heads")
        config = cls(
            architecture=_architecture(fields),
            vocab_size=fields.positive_int("vocab_size"),
            hidden_size=fields.positive_int("hidden_size"),
            intermediate_size=fields.positive_int("intermediate_size"),
            n_layers=fields.positive_int("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=fields.positive_int("num_key_value_heads", default=n_heads),
            head_dim=fields.positive_int(
                "head_dim", default=max(1, fields.positive_int("hidden_size") // n_heads)
            ),
            rms_norm_eps=fields.positive_float("rms_norm_eps"),
            rope_theta=_rope_theta(fields),
            context_length=fields.positive_int("max_position_embeddings"),
            tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
            eos_token_ids=_eos_token_ids(fields, generation),
        )
        config._check_sizes()
        return config

    def _check_sizes(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"num_attention_heads ({self.n_heads}) must be a multiple of "
                f"num_key_value_heads ({self.n_kv_heads})"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary embedding, not {self.head_dim}")


class _Fields:
    """Typed reads from a JSON object; every complaint names the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a JSON object")
        self.values: Mapping[str, object] = values

    def get(self, name: str) -> object:
        return self.values.get(name)

    def positive_int(self, name: str, *, default: int | None = None) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, expected="a positive integer")
        return value

    def positive_float(self, name: str) -> float:
        return self.as_positive_float(name, value=self.get(name))

    def as_positive_float(self, name: str, *, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, expected="a positive number")
        if not 0.0 < value < float("inf"):
            raise self.wrong(name, expected="a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, expected="true or false")
        return value

    def wrong(self, name: str, *, expected: str) -> ModelError:
        return ModelError(f"{self.path}: {name} must be {expected}, not {self.get(name)!r}")


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ModelError(f"{name} must be a positive integer, not {value}")


def _architecture(fields: _Fields) -> str:
    value = fields.get("architectures")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    raise fields.wrong("architectures", expected="a list of one name")


def _refuse_unimplemented(fields: _Fields) -> None:
    required: Mapping[str, tuple[object, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "rope_scaling": (None,),
        "rope_interleaved": (None, False),
        "sliding_window": (None,),
        "partial_rotary_factor": (None, 1.0),
        "quantization_config": (None,),
        "auto_map": (None,),
    }
    for name, allowed in required.items():
        if fields.get(name) not in allowed:
            raise ModelError(
                f"{fields.path}: {name}={fields.get(name)!r} is not supported by this engine"
            )


def _rope_theta(fields: _Fields) -> float:
    """Read the rotary base from ``rope_parameters`` (transformers 5) or ``rope_theta``."""
    parameters = fields.get("rope_parameters")
    if parameters is None:
        value = fields.get("rope_theta")
        return fields.as_positive_float("rope_theta", value=10_000.0 if value is None else value)
    if not isinstance(parameters, dict):
        raise fields.wrong("rope_parameters", expected="an object")
    kind = parameters.get("rope_type", "default")
    unknown = parameters.keys() - {"rope_type", "rope_theta", "partial_rotary_factor"}
    if kind != "default" or unknown or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{fields.path}: rope_parameters={parameters!r} is not supported by this engine"
        )
    return fields.as_positive_float("rope_parameters", value=parameters.get("rope_theta"))


def _eos_token_ids(fields: _Fields, generation: _Fields | None) -> frozenset[int]:
    source = generation if generation and generation.get("eos_token_id") is not None else fields
    value = source.get("eos_token_id")
    ids: list[object] = [] if value is None else value if isinstance(value, list) else [value]
    vocab_size = fields.positive_int("vocab_size")
    token_ids = frozenset(i for i in ids if isinstance(i, int) and 0 <= i < vocab_size)
    if len(token_ids) < len(ids):
        raise source.wrong("eos_token_id", expected="different ids within the vocabulary")
    return token_ids
