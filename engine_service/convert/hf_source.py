"""A Hugging Face directory with safetensors weights as a checkpoint."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engine_service.convert.checkpoint import (
    BFLOAT16,
    FLOAT32,
    Checkpoint,
    ModelShape,
    RawTensor,
    check_tensors,
)
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import (
    MAX_JSON_BYTES,
    MAX_TOKENIZER_BYTES,
    json_bytes,
    parse_json_object,
    plain_files,
    read_bounded,
)
from engine_service.convert.safetensors_file import SafetensorsFile, StoredTensor
from engine_service.families import FAMILIES

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Name of a copied file -> most bytes, and whether a model can do without.
_COPIED = {
    "tokenizer.json": (MAX_TOKENIZER_BYTES, True),
    "tokenizer_config.json": (MAX_JSON_BYTES * 16, True),
    "special_tokens_map.json": (MAX_JSON_BYTES, False),
    "chat_template.jinja": (MAX_JSON_BYTES, False),
}


def open_hugging_face(directory: Path, *, resources: ExitStack) -> Checkpoint:
    """Check a directory and describe it. ``resources`` closes its files after the last read."""
    files = plain_files(directory)
    config = _config(files)
    shape = _shape(config)
    weights = _Weights(files, tied=shape.tie_word_embeddings, resources=resources)
    check_tensors(
        found={name: tensor.shape for name, (_, tensor) in weights.tensors.items()}, shape=shape
    )
    return Checkpoint(
        shape=shape,
        dtype=weights.dtype,
        license=_license(files),
        config={**_without_dtype(config), "dtype": weights.dtype},
        files=_copied_files(files, config=config, vocab_size=shape.vocab_size),
        read=weights.read,
    )


class _Weights:
    """All tensors of a directory's safetensors files under their names."""

    def __init__(self, files: Mapping[str, Path], *, tied: bool, resources: ExitStack) -> None:
        self.tensors: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        paths = [path for path in files.values() if path.suffix == ".safetensors"]
        if not paths:
            raise ConversionError("the directory has no safetensors file", field="*.safetensors")
        for path in paths:
            file = SafetensorsFile(path)
            resources.callback(file.close)
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise ConversionError(f"tensor {name!r} appears twice", field=name)
                # A constant that older checkpoints carry along.
                if not name.endswith(".rotary_emb.inv_freq"):
                    self.tensors[name] = (file, tensor)
        if tied and _HEAD in self.tensors:
            self._drop_tied_head()
        stored = {tensor.dtype for _, tensor in self.tensors.values()}
        self.dtype = BFLOAT16 if stored == {"BF16"} else FLOAT32

    def read(self, name: str) -> RawTensor:
        """One tensor in the checkpoint's type; widening is exact."""
        file, tensor = self.tensors[name]
        raw = file.raw(name)
        if tensor.dtype == "F32":
            return np.frombuffer(raw, dtype="<f4").reshape(tensor.shape)
        if tensor.dtype == "F16":
            return np.frombuffer(raw, dtype="<f2").astype(np.float32).reshape(tensor.shape)
        bits = np.frombuffer(raw, dtype="<u2").reshape(tensor.shape)
        if self.dtype == BFLOAT16:
            return bits
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def _drop_tied_head(self) -> None:
        head_file, head = self.tensors.pop(_HEAD)
        if _EMBEDDING not in self.tensors:
            return
        file, embedding = self.tensors[_EMBEDDING]
        if head.dtype != embedding.dtype or head_file.raw(_HEAD) != file.raw(_EMBEDDING):
            raise ConversionError(
                "the configuration ties the head to the embedding, but they differ", field=_HEAD
            )


def _config(files: Mapping[str, Path]) -> dict[str, Any]:
    config = _json_file(files, "config.json")
    for name in ("auto_map", "trust_remote_code"):
        if config.get(name):
            raise ConversionError(
                f"config.json has {name!r}: models that bring their own code are refused",
                field=name,
            )
    if config.get("architectures") not in [[name] for name in FAMILIES]:
        raise ConversionError(
            f"architectures is {config.get('architectures')!r}; one of "
            f"{', '.join(FAMILIES)} is supported",
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


def _copied_files(
    files: Mapping[str, Path], *, config: Mapping[str, Any], vocab_size: int
) -> dict[str, bytes]:
    copied: dict[str, bytes] = {}
    for name, (max_bytes, required) in _COPIED.items():
        if name in files:
            copied[name] = read_bounded(files[name], max_bytes=max_bytes)
        elif required:
            raise ConversionError(f"{name} is missing", field=name)
    tokenizer_config = parse_json_object(
        copied["tokenizer_config.json"], name="tokenizer_config.json"
    )
    if tokenizer_config.get("auto_map"):
        raise ConversionError(
            "tokenizer_config.json has 'auto_map': tokenizers that bring their own code "
            "are refused",
            field="auto_map",
        )
    _check_tokenizer(copied["tokenizer.json"], vocab_size=vocab_size)
    copied["generation_config.json"] = _generation_config(files, config=config)
    return copied


def _check_tokenizer(data: bytes, *, vocab_size: int) -> None:
    try:
        tokenizer = Tokenizer.from_buffer(data)
    # The library raises nothing narrower.
    except Exception as error:
        raise ConversionError(
            f"tokenizer.json is not valid: {error}", field="tokenizer.json"
        ) from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise ConversionError(
            f"tokenizer.json has token id {largest}, but the model's vocabulary ends at "
            f"{vocab_size - 1}",
            field="tokenizer.json",
        )


def _generation_config(files: Mapping[str, Path], *, config: Mapping[str, Any]) -> bytes:
    if "generation_config.json" in files:
        return json_bytes(_json_file(files, "generation_config.json"))
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return json_bytes({name: config[name] for name in names if config.get(name) is not None})


def _json_file(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in files:
        raise ConversionError(f"{name} is missing", field=name)
    return parse_json_object(read_bounded(files[name], max_bytes=MAX_JSON_BYTES), name=name)


def _without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in {"dtype", "torch_dtype"}}


def _license(files: Mapping[str, Path]) -> str:
    """The ``license`` line of the model card's front matter, if there is one."""
    if "README.md" not in files:
        return ""
    with files["README.md"].open("rb") as file:
        head = file.read(1 << 16).decode("utf-8", errors="replace")
    found = re.match(r"---\r?\n(?:.*\r?\n)*?license:[ \t]*([\w.+-]+)", head)
    return found.group(1) if found else ""
