"""What Python sees of the compiled library. The structs are those of ``src/model.h``.

Calls release the interpreter's lock. Tensors are handed over by address: the caller keeps them
alive during the call, and the library keeps no address after it.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from engine_service.kernels.cpu.build import library_path

# As ``src/model.h`` has them.
MAX_HEAD_DIM: Final = 512
HEAD_DIM_STEP: Final = 16
BLOCK_SIZE_STEP: Final = 16
PANEL: Final = 32

_INT = ctypes.c_int32
_INTS = ctypes.c_void_p


class Shape(ctypes.Structure):
    """dtype: 0 is float32, 1 bfloat16. quantization: 0 is none, 1 int8; CompiledModel sets it."""

    _fields_ = [
        ("dtype", _INT),
        ("quantization", _INT),
        ("hidden", _INT),
        ("inner", _INT),
        ("n_layers", _INT),
        ("n_heads", _INT),
        ("n_kv_heads", _INT),
        ("head_dim", _INT),
        ("vocab", _INT),
        ("max_model_len", _INT),
        ("block_size", _INT),
        ("n_blocks", _INT),
        ("max_tokens", _INT),
        ("n_threads", _INT),
        ("eps", ctypes.c_float),
    ]


class LayerWeights(ctypes.Structure):
    """Addresses; null for what a family does not have."""

    _fields_ = [
        ("attention_norm", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("qkv_bias", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("feed_forward_norm", ctypes.c_void_p),
        ("gate_up", ctypes.c_void_p),
        ("down", ctypes.c_void_p),
    ]


class StepRows(ctypes.Structure):
    """Tokens of all rows, one after the other; addresses of int32 arrays and float32 logits."""

    _fields_ = [
        ("n_tokens", _INT),
        ("n_rows", _INT),
        ("n_sampled", _INT),
        ("token_ids", _INTS),
        ("n_new", _INTS),
        ("context_len", _INTS),
        ("table_start", _INTS),
        ("block_ids", _INTS),
        ("sampled", _INTS),
        ("logits", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Library:
    """instruction_sets: those that this processor has, best first."""

    functions: ctypes.CDLL
    instruction_sets: tuple[str, ...]


def unsupported(shape: Shape) -> str | None:
    """Say by name which size of a model the compiled step does not know, or None."""
    head_dim, n_heads, n_kv_heads = shape.head_dim, shape.n_heads, shape.n_kv_heads
    if head_dim % HEAD_DIM_STEP or not 0 < head_dim <= MAX_HEAD_DIM:
        return f"head_dim {head_dim} is no multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}"
    if shape.block_size % BLOCK_SIZE_STEP or shape.block_size < 1:
        return f"block_size {shape.block_size} is no multiple of {BLOCK_SIZE_STEP}"
    if n_heads % n_kv_heads:
        return f"{n_heads} heads are no multiple of {n_kv_heads} K/V heads"
    return None


def load_library() -> Library | None:
    """Return the library built from the sources as they are; None where there is none."""
    path = library_path()
    return _load(path) if path.exists() else None


@cache
def _load(path: Path) -> Library:
    functions = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "cpu_instruction_set": (ctypes.c_char_p, [integer]),
        "cpu_model_new": (pointer, [ctypes.POINTER(Shape), ctypes.c_char_p]),
        "cpu_model_free": (None, [pointer]),
        "cpu_model_set_layer": (integer, [pointer, integer, ctypes.POINTER(LayerWeights)]),
        "cpu_model_set_ends": (integer, [pointer] * 5),
        "cpu_model_step": (integer, [pointer, ctypes.POINTER(StepRows)]),
        "cpu_model_clear": (integer, [pointer, pointer, integer]),
        "cpu_model_copy": (integer, [pointer, pointer, pointer, integer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    names: list[str] = []
    while name := functions.cpu_instruction_set(len(names)):
        names.append(name.decode())
    return Library(functions, tuple(names))
