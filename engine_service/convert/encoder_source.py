"""A BERT with the modules that sentence-transformers puts after it, as a checkpoint.

modules.json lists them: the model, how its vectors become one, and whether that is normalised.
"""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine_service.convert.checkpoint import Checkpoint, check_limits, check_tensors
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import MAX_JSON_BYTES, json_bytes, read_bounded
from engine_service.convert.hf_files import (
    Weights,
    copied_files,
    json_file,
    license_of,
    without_dtype,
)
from engine_service.encoder_config import POOLING_NAME, Pooling

_MODULES, _SETTINGS, _TEXTS = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
# Numbers of positions that older checkpoints carry along, and a head for another task.
_LEFT_OUT: Final = re.compile(r"embeddings\.position_ids|pooler\..*")
_LIMITS: Final = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 10,
}
_POOLING_MODES: Final[Mapping[str, Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_MODULE_PREFIX: Final = "sentence_transformers."


class _Module(msgspec.Struct, frozen=True):
    path: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """The numbers that decide every tensor's shape; field names are Hugging Face's."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    context_length: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
        dense = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for index in range(self.num_hidden_layers):
            prefix = f"encoder.layer.{index}."
            for name, shape in dense.items():
                shapes[f"{prefix}{name}.weight"] = shape
                shapes[f"{prefix}{name}.bias"] = shape[:1]
            for name in ("attention.output", "output"):
                for part in ("weight", "bias"):
                    shapes[f"{prefix}{name}.LayerNorm.{part}"] = (hidden,)
        return shapes


def open_encoder(
    files: Mapping[str, Path], *, config: Mapping[str, Any], resources: ExitStack
) -> Checkpoint:
    """Check an embedding model's files and describe it."""
    check_limits({name: config.get(name) for name in _LIMITS}, limits=_LIMITS)
    pooling, is_normalized = _read_modules(files, hidden_size=config["hidden_size"])
    max_input_tokens = _max_input_tokens(files, n_positions=config["max_position_embeddings"])
    shape = EncoderShape(
        architecture=config["architectures"][0],
        context_length=max_input_tokens,
        **{name: config[name] for name in _LIMITS},
    )
    weights = Weights(files, left_out=_LEFT_OUT, resources=resources)
    check_tensors(found=weights.shapes, shape=shape)
    described = {
        "pooling": pooling,
        "normalize": is_normalized,
        "max_input_tokens": max_input_tokens,
    }
    return Checkpoint(
        shape=shape,
        dtype=weights.dtype,
        license=license_of(files),
        config={**without_dtype(config), "dtype": weights.dtype},
        files={
            **copied_files(files, vocab_size=shape.vocab_size),
            POOLING_NAME: json_bytes(described),
        },
        read=weights.read,
    )


def _read_modules(files: Mapping[str, Path], *, hidden_size: int) -> tuple[Pooling, bool]:
    """How vectors become one, and whether that is scaled to length 1."""
    if _SETTINGS in files and (name := json_file(files, _SETTINGS).get("default_prompt_name")):
        raise ConversionError(
            f"{_SETTINGS} has the default prompt {name!r}: prompts are not supported",
            field="default_prompt_name",
        )
    modules = _modules(files)
    kinds = [module.type.rpartition(".")[2] for module in modules]
    is_known = all(module.type.startswith(_MODULE_PREFIX) for module in modules)
    if not is_known or kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
    ):
        types = ", ".join(module.type for module in modules)
        raise ConversionError(
            f"{_MODULES} lists {types or 'nothing'}; supported are Transformer, then Pooling, "
            "then Normalize or nothing",
            field=_MODULES,
        )
    if modules[0].path:
        raise ConversionError(
            f"{_MODULES} has the model in {modules[0].path!r}, not beside it", field=_MODULES
        )
    return _read_pooling(files, modules[1], hidden_size=hidden_size), len(kinds) == 3


def _modules(files: Mapping[str, Path]) -> list[_Module]:
    if _MODULES not in files:
        raise ConversionError(
            f"{_MODULES} is missing: nothing says how the model's vectors become one",
            field=_MODULES,
        )
    data = read_bounded(files[_MODULES], max_bytes=MAX_JSON_BYTES)
    try:
        return msgspec.json.decode(data, type=list[_Module])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConversionError(f"{_MODULES} is not valid: {error}", field=_MODULES) from error


def _read_pooling(files: Mapping[str, Path], module: _Module, *, hidden_size: int) -> Pooling:
    name = f"{module.path}/config.json"
    config = json_file(files, name)
    modes = [mode for mode, is_on in config.items() if mode.startswith("pooling_mode") and is_on]
    if len(modes) != 1 or modes[0] not in _POOLING_MODES or config[modes[0]] is not True:
        raise ConversionError(
            f"{name} pools by {', '.join(modes) or 'nothing'}; exactly one of "
            f"{', '.join(_POOLING_MODES)} is supported",
            field=modes[0] if modes else "pooling_mode",
        )
    if config.get("word_embedding_dimension") != hidden_size:
        raise ConversionError(
            f"{name} has word_embedding_dimension {config.get('word_embedding_dimension')!r}, "
            f"the model has hidden_size {hidden_size}",
            field="word_embedding_dimension",
        )
    return _POOLING_MODES[modes[0]]


def _max_input_tokens(files: Mapping[str, Path], *, n_positions: int) -> int:
    if _TEXTS not in files:
        return n_positions
    config = json_file(files, _TEXTS)
    if config.get("do_lower_case"):
        raise ConversionError(
            f"{_TEXTS} asks for do_lower_case, which is the tokenizer's to do",
            field="do_lower_case",
        )
    length = config.get("max_seq_length")
    if length is None:
        return n_positions
    if type(length) is not int or not 1 <= length <= n_positions:
        raise ConversionError(
            f"{_TEXTS} has max_seq_length {json.dumps(length)}; 1 to {n_positions} is expected",
            field="max_seq_length",
        )
    return length
