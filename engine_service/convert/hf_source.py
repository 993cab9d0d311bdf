"""A Hugging Face directory with safetensors weights as a checkpoint."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from engine_service.convert.checkpoint import Checkpoint, ModelShape, check_tensors
from engine_service.convert.encoder_source import open_encoder
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import json_bytes, model_files
from engine_service.convert.hf_files import (
    Weights,
    copied_files,
    json_file,
    license_of,
    without_dtype,
)
from engine_service.encoder_config import ENCODERS
from engine_service.families import FAMILIES

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# A constant that older checkpoints carry along.
_LEFT_OUT: Final = re.compile(r".*\.rotary_emb\.inv_freq")


def open_hugging_face(directory: Path, *, resources: ExitStack) -> Checkpoint:
    """Check a directory and describe it. ``resources`` closes its files after the last read."""
    files = model_files(directory)
    config = _config(files)
    if config["architectures"][0] in ENCODERS:
        return open_encoder(files, config=config, resources=resources)
    shape = _shape(config)
    weights = Weights(files, left_out=_LEFT_OUT, resources=resources)
    if shape.tie_word_embeddings and _HEAD in weights.tensors:
        _drop_tied_head(weights)
    check_tensors(found=weights.shapes, shape=shape)
    copied = copied_files(files, vocab_size=shape.vocab_size)
    copied["generation_config.json"] = _generation_config(files, config=config)
    return Checkpoint(
        shape=shape,
        dtype=weights.dtype,
        license=license_of(files),
        config={**without_dtype(config), "dtype": weights.dtype},
        files=copied,
        read=weights.read,
    )


def _config(files: Mapping[str, Path]) -> dict[str, Any]:
    config = json_file(files, "config.json")
    for name in ("auto_map", "trust_remote_code"):
        if config.get(name):
            raise ConversionError(
                f"config.json has {name!r}: models that bring their own code are refused",
                field=name,
            )
    supported = [*FAMILIES, *ENCODERS]
    if config.get("architectures") not in [[name] for name in supported]:
        raise ConversionError(
            f"architectures is {config.get('architectures')!r}; one of "
            f"{', '.join(supported)} is supported",
            field="architectures",
        )
    if config.get("quantization_config"):
        raise ConversionError(
            "quantized safetensors checkpoints are not supported", field="quantization_config"
        )
    return config


def _shape(config: Mapping[str, Any]) -> ModelShape:
    n_heads, hidden_size = config.get("num_attention_heads"), config.get("hidden_size")
    architecture: str = config["architectures"][0]
    head_dim = config.get("head_dim")
    if head_dim is None:
        head_dim = FAMILIES[architecture].default_head_dim
    if head_dim is None and isinstance(hidden_size, int) and isinstance(n_heads, int) and n_heads:
        head_dim = hidden_size // n_heads
    n_kv_heads = config.get("num_key_value_heads")
    if n_kv_heads is None:
        n_kv_heads = n_heads
    numbers: dict[str, Any] = {
        name: config.get(name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    }
    # ModelShape refuses what is no number.
    numbers |= {"num_key_value_heads": n_kv_heads, "head_dim": head_dim}
    return ModelShape(
        architecture=architecture,
        **numbers,
        tie_word_embeddings=config.get("tie_word_embeddings", False) is True,
    )


def _drop_tied_head(weights: Weights) -> None:
    head_file, head = weights.tensors.pop(_HEAD)
    if _EMBEDDING not in weights.tensors:
        return
    file, embedding = weights.tensors[_EMBEDDING]
    if head.dtype != embedding.dtype or head_file.raw(_HEAD) != file.raw(_EMBEDDING):
        raise ConversionError(
            "the configuration ties the head to the embedding, but they differ", field=_HEAD
        )


def _generation_config(files: Mapping[str, Path], *, config: Mapping[str, Any]) -> bytes:
    if "generation_config.json" in files:
        return json_bytes(json_file(files, "generation_config.json"))
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return json_bytes({name: config[name] for name in names if config.get(name) is not None})
