"""What every Hugging Face directory has: weights in safetensors files, JSON, a tokenizer."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engine_service.convert.checkpoint import BFLOAT16, FLOAT32, RawTensor
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import (
    MAX_JSON_BYTES,
    MAX_TOKENIZER_BYTES,
    parse_json_object,
    read_bounded,
)
from engine_service.convert.safetensors_file import SafetensorsFile, StoredTensor

# Name of a copied file -> most bytes, and whether a model can do without.
_COPIED = {
    "tokenizer.json": (MAX_TOKENIZER_BYTES, True),
    "tokenizer_config.json": (MAX_JSON_BYTES * 16, True),
    "special_tokens_map.json": (MAX_JSON_BYTES, False),
    "chat_template.jinja": (MAX_JSON_BYTES, False),
    "README.md": (MAX_JSON_BYTES, False),
}
_SETTINGS = {"tokenizer_config.json", "special_tokens_map.json"}


class Weights:
    """All tensors of a directory's safetensors files, but those of names that ``left_out`` fits."""

    def __init__(
        self, files: Mapping[str, Path], *, left_out: re.Pattern[str], resources: ExitStack
    ) -> None:
        self.tensors: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        paths = [path for path in files.values() if path.suffix == ".safetensors"]
        if not paths:
            raise ConversionError("the directory has no safetensors file", field="*.safetensors")
        for path in paths:
            file = SafetensorsFile(path, left_out=left_out)
            resources.callback(file.close)
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise ConversionError(f"tensor {name!r} appears twice", field=name)
                self.tensors[name] = (file, tensor)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, (_, tensor) in self.tensors.items()}

    @property
    def dtype(self) -> str:
        stored = {tensor.dtype for _, tensor in self.tensors.values()}
        return BFLOAT16 if stored == {"BF16"} else FLOAT32

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


def copied_files(files: Mapping[str, Path], *, vocab_size: int) -> dict[str, bytes]:
    """The files that go to the model directory as they are, the tokenizer checked."""
    copied: dict[str, bytes] = {}
    for name, (max_bytes, required) in _COPIED.items():
        if name in files:
            copied[name] = read_bounded(files[name], max_bytes=max_bytes)
        elif required:
            raise ConversionError(f"{name} is missing", field=name)
    for name in _SETTINGS & copied.keys():
        for key in ("auto_map", "trust_remote_code"):
            if parse_json_object(copied[name], name=name).get(key):
                raise ConversionError(
                    f"{name} has {key!r}: tokenizers that bring their own code are refused",
                    field=key,
                )
    _check_tokenizer(copied["tokenizer.json"], vocab_size=vocab_size)
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


def json_file(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """One JSON object of the directory, which must be there."""
    if name not in files:
        raise ConversionError(f"{name} is missing", field=name)
    return parse_json_object(read_bounded(files[name], max_bytes=MAX_JSON_BYTES), name=name)


def without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it says of the weights' type, which the converter decides."""
    return {name: value for name, value in config.items() if name not in {"dtype", "torch_dtype"}}


def license_of(files: Mapping[str, Path]) -> str:
    """The ``license`` line of the model card's front matter, if there is one."""
    if "README.md" not in files:
        return ""
    with files["README.md"].open("rb") as file:
        head = file.read(1 << 16).decode("utf-8", errors="replace")
    found = re.match(r"---\r?\n(?:.*\r?\n)*?license:[ \t]*([\w.+-]+)", head)
    return found.group(1) if found else ""
