"""A GGUF file of the llama architecture as a checkpoint: names, numbers and rotary layout."""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine_service.convert.checkpoint import (
    BFLOAT16,
    FLOAT32,
    Checkpoint,
    ModelShape,
    RawTensor,
    check_tensors,
)
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import json_bytes
from engine_service.convert.gguf_metadata import Metadata, integer, positive_real, text, texts
from engine_service.convert.gguf_reader import GgufFile
from engine_service.convert.gguf_tokenizer import build_tokenizer_files, special_token_ids

_ARCHITECTURE = "LlamaForCausalLM"
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def open_gguf(file: GgufFile) -> Checkpoint:
    """Check a GGUF file's model and describe it. ``file`` must stay open while tensors are read."""
    _refuse_unsupported(file.metadata)
    shape = _shape(file)
    gguf_names = {_hugging_face_name(name): name for name in file.tensors}
    check_tensors(
        found={name: file.tensors[gguf].shape for name, gguf in gguf_names.items()}, shape=shape
    )
    dtype = _lossless_dtype(file)

    def read(name: str) -> RawTensor:
        values = _with_rotary_halves(file.read(gguf_names[name]), name=name, shape=shape)
        return _bfloat16_bits(values) if dtype == BFLOAT16 else values

    return Checkpoint(
        shape=shape,
        dtype=dtype,
        license=text(file.metadata, "general.license", default=""),
        config=_config(file, shape=shape, dtype=dtype),
        files={
            **build_tokenizer_files(file.metadata, context_length=shape.max_position_embeddings),
            "generation_config.json": json_bytes(special_token_ids(file.metadata)),
        },
        read=read,
    )


def _refuse_unsupported(metadata: Metadata) -> None:
    architecture = text(metadata, "general.architecture")
    if architecture != "llama":
        raise ConversionError(
            f"architecture {architecture!r} is not supported; 'llama' is",
            field="general.architecture",
        )
    scaling = text(metadata, "llama.rope.scaling.type", default="none")
    if scaling != "none":
        raise ConversionError(
            f"rope scaling {scaling!r} is not supported", field="llama.rope.scaling.type"
        )
    if integer(metadata, "llama.expert_count", default=0):
        raise ConversionError("mixtures of experts are not supported", field="llama.expert_count")


def _shape(file: GgufFile) -> ModelShape:
    metadata = file.metadata
    hidden_size = integer(metadata, "llama.embedding_length")
    n_heads = integer(metadata, "llama.attention.head_count")
    if not 1 <= n_heads <= hidden_size:
        raise ConversionError(
            f"llama.attention.head_count is {n_heads}", field="llama.attention.head_count"
        )
    head_dim = integer(metadata, "llama.attention.key_length", default=hidden_size // n_heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if integer(metadata, key, default=head_dim) != head_dim:
            raise ConversionError(
                f"{key} differs from the head size {head_dim}: not supported", field=key
            )
    return ModelShape(
        architecture=_ARCHITECTURE,
        hidden_size=hidden_size,
        intermediate_size=integer(metadata, "llama.feed_forward_length"),
        num_hidden_layers=integer(metadata, "llama.block_count"),
        num_attention_heads=n_heads,
        num_key_value_heads=integer(metadata, "llama.attention.head_count_kv", default=n_heads),
        head_dim=head_dim,
        vocab_size=len(texts(metadata, "tokenizer.ggml.tokens")),
        max_position_embeddings=integer(metadata, "llama.context_length"),
        tie_word_embeddings="output.weight" not in file.tensors,
    )


def _config(file: GgufFile, *, shape: ModelShape, dtype: str) -> dict[str, Any]:
    metadata = file.metadata
    sizes = {
        name: getattr(shape, name)
        for name in ModelShape.__dataclass_fields__
        if name != "architecture"
    }
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": "llama",
        "dtype": dtype,
        **sizes,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": positive_real(metadata, "llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": positive_real(metadata, "llama.rope.freq_base", default=10_000.0),
        },
        **special_token_ids(metadata),
    }


def _hugging_face_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if part in _LAYER_PARTS and index.isdecimal():
            return f"model.layers.{index}.{_LAYER_PARTS[part]}.weight"
    raise ConversionError(f"tensor {name!r} is no part of a supported {_ARCHITECTURE}", field=name)


def _with_rotary_halves(
    values: npt.NDArray[np.float32], *, name: str, shape: ModelShape
) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's row order of q and k, which pairs neighbours; Hugging Face pairs halves."""
    if name.endswith("self_attn.q_proj.weight"):
        n_heads = shape.num_attention_heads
    elif name.endswith("self_attn.k_proj.weight"):
        n_heads = shape.num_key_value_heads
    else:
        return values
    pairs = values.reshape(n_heads, shape.head_dim // 2, 2, values.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _lossless_dtype(file: GgufFile) -> str:
    """bfloat16 only where it holds every weight exactly: nothing is lost on the way in."""
    for name, tensor in file.tensors.items():
        if tensor.kind.name == "BF16":
            continue
        if tensor.kind.name != "F32" or len(tensor.shape) != 1:
            return FLOAT32
        if np.any(np.frombuffer(file.raw(name), dtype="<u4") & 0xFFFF):
            return FLOAT32
    return BFLOAT16


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
