"""Builds small sources byte by byte, so that a test can make any of their numbers a lie."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import pre_tokenizers

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16 = 0, 1, 2, 3, 8, 14, 30
ALIGNMENT = 32

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 32, 64, 4, 2, 8, 128
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "12", "th", "the"]
MERGES = ["1 2", "t h", "th e"]
VOCAB = len(TOKENS)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@dataclass(frozen=True)
class Tensor:
    """``shape`` in row-major order; ``offset`` None is wherever the tensor belongs."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: Any) -> bytes:
    """One metadata entry in the type that its Python value suggests."""
    return string(key) + _typed(value)


def _typed(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + string(value)
    if all(isinstance(item, int) for item in value):
        head = struct.pack("<IIQ", ARRAY, INT32, len(value))
        return head + struct.pack(f"<{len(value)}i", *value)
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(string, value))


def gguf(
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[Tensor] = (),
    entries: Sequence[bytes] = (),
    version: int = 3,
    n_tensors: int | None = None,
    n_entries: int | None = None,
) -> bytes:
    """A GGUF file; the counts and ``entries`` (ready bytes) may contradict the rest."""
    written = [entry(key, value) for key, value in (metadata or {}).items()] + list(entries)
    infos, data = b"", b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        dims = tuple(reversed(tensor.shape))
        infos += string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        infos += struct.pack("<IQ", tensor.kind, offset)
        data += tensor.data + bytes(-len(tensor.data) % ALIGNMENT)
    counts = struct.pack(
        "<QQ",
        len(tensors) if n_tensors is None else n_tensors,
        len(written) if n_entries is None else n_entries,
    )
    head = b"GGUF" + struct.pack("<I", version) + counts + b"".join(written) + infos
    return head + bytes(-len(head) % ALIGNMENT) + data


def llama_metadata() -> dict[str, Any]:
    """What a one-layer Llama's GGUF says; head size 8, two query heads for each key head."""
    return {
        "general.architecture": "llama",
        "general.license": "mit",
        "llama.block_count": 1,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (VOCAB - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def weights(*, seed: int = 0, tied: bool = True) -> dict[str, npt.NDArray[np.float32]]:
    """The tiny model's weights in Hugging Face's names, exact in bfloat16."""
    generator = np.random.default_rng(seed)
    layer = "model.layers.0."
    q_rows, kv_rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "self_attn.q_proj.weight": (q_rows, HIDDEN),
        layer + "self_attn.k_proj.weight": (kv_rows, HIDDEN),
        layer + "self_attn.v_proj.weight": (kv_rows, HIDDEN),
        layer + "self_attn.o_proj.weight": (HIDDEN, q_rows),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "mlp.gate_proj.weight": (INNER, HIDDEN),
        layer + "mlp.up_proj.weight": (INNER, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INNER),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    values = {name: generator.normal(0, 0.2, shape) for name, shape in shapes.items()}
    return {name: from_bfloat16(bfloat16(array)) for name, array in values.items()}


def llama_tensors(*, kind: int = F32, tied: bool = True) -> list[Tensor]:
    """The same weights as llama.cpp stores them: its names, its order of q and k rows."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
        "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }
    tensors = []
    for name, values in weights(tied=tied).items():
        gguf_name = names[name.removesuffix(".weight")] + ".weight"
        stored = values
        for part, n_heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
            if part in gguf_name:
                halves = values.reshape(n_heads, 2, HEAD_DIM // 2, HIDDEN)
                stored = halves.swapaxes(1, 2).reshape(values.shape)
        tensor_kind = kind if values.ndim == 2 else F32
        raw = {F32: stored.astype("<f4"), F16: stored.astype("<f2"), BF16: bfloat16(stored)}
        tensors.append(Tensor(gguf_name, values.shape, tensor_kind, raw[tensor_kind].tobytes()))
    return tensors


def llama_gguf(changes: Mapping[str, Any] | None = None, *, kind: int = F32) -> bytes:
    """A whole tiny model; ``changes`` override metadata, None drops a key."""
    metadata = {**llama_metadata(), **(changes or {})}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return gguf(metadata=kept, tensors=llama_tensors(kind=kind))


def safetensors(
    tensors: Mapping[str, npt.NDArray[Any]], *, header: Mapping[str, Any] | None = None
) -> bytes:
    """A safetensors file (uint16 arrays are bfloat16); ``header`` overrides entries."""
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        described[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    encoded = json.dumps({**described, **(header or {})}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def hugging_face_config(**changes: Any) -> dict[str, Any]:
    """config.json of the tiny model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "eos_token_id": 2,
        **changes,
    }


def hugging_face_dir(
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Path:
    """A whole tiny model as a directory, which a test may then spoil."""
    directory.mkdir(parents=True)
    described = hugging_face_config() if config is None else config
    (directory / "config.json").write_text(json.dumps(described))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    stored = weights() if tensors is None else tensors
    (directory / "model.safetensors").write_bytes(safetensors(stored))
    return directory


def bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The upper half of each float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path: Path) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """Type and raw values by name, read without the code under test."""
    data = path.read_bytes()
    n_header = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n_header])
    tensors = {}
    for name, described in header.items():
        if name != "__metadata__":
            start, end = (8 + n_header + at for at in described["data_offsets"])
            dtype = {"F32": "<f4", "BF16": "<u2"}[described["dtype"]]
            values = np.frombuffer(data[start:end], dtype=dtype)
            assert values.size == math.prod(described["shape"])
            tensors[name] = described["dtype"], values.reshape(described["shape"])
    return tensors


TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "vocab": {token: index for index, token in enumerate(TOKENS)},
        "merges": [merge.split(" ") for merge in MERGES],
    },
}
