"""A decoder of the Llama family whose whole step is one call into the compiled library."""

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine_service.config import QuantizationName
from engine_service.errors import EngineError
from engine_service.kernels.cpu.library import (
    PANEL,
    LayerWeights,
    Library,
    Shape,
    StepRows,
    unsupported,
)


@dataclass(slots=True)
class RaggedRows:
    """One step's rows, as int32 arrays: their tokens one after the other, and each row's length,
    context and place of its block table in ``block_ids``. ``sampled``: which tokens' logits."""

    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    n_new: "array[int]" = field(default_factory=lambda: array("i"))
    context_len: "array[int]" = field(default_factory=lambda: array("i"))
    table_start: "array[int]" = field(default_factory=lambda: array("i"))
    block_ids: "array[int]" = field(default_factory=lambda: array("i"))
    sampled: "array[int]" = field(default_factory=lambda: array("i"))


class CompiledModel:
    """Owns packed weights, KV cache and threads; raises MemoryError where these cannot be had.

    quantization: what becomes of the weights of all products, and not of the embedding's rows;
    "int8" is that of ``kernels.quantization``. Not for two threads at once. Every layer and the
    ends must be set before the first step. What ``library.unsupported`` names, or a tensor of
    another shape or dtype, is a ValueError.
    """

    def __init__(
        self,
        library: Library,
        shape: Shape,
        *,
        instruction_set: str,
        quantization: QuantizationName = "none",
    ) -> None:
        if (reason := unsupported(shape)) is not None:
            raise ValueError(reason)
        self._functions = library.functions
        self._shape = Shape.from_buffer_copy(shape)
        self._shape.quantization = int(quantization == "int8")
        self._dtype = torch.bfloat16 if shape.dtype else torch.float32
        self._logits = torch.empty((0, 0), dtype=torch.float32)
        handle = self._functions.cpu_model_new(ctypes.byref(self._shape), instruction_set.encode())
        if not handle:
            raise MemoryError("the compiled model")
        self._handle = ctypes.c_void_p(handle)
        weakref.finalize(self, self._functions.cpu_model_free, self._handle)

    def set_layer(
        self,
        index: int,
        *,
        attention_norm: Tensor,
        qkv: Tensor,
        output: Tensor,
        feed_forward_norm: Tensor,
        gate_up: Tensor,
        down: Tensor,
        qkv_bias: Tensor | None = None,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> None:
        """Copy one layer's tensors, the products' as (n_out, n_in) of the model's dtype.

        qkv_bias: of q, k and v. q_norm, k_norm: (head_dim,), of each head before it is rotated.
        """
        hidden, inner, head_dim = self._shape.hidden, self._shape.inner, self._shape.head_dim
        query = self._shape.n_heads * head_dim
        n_qkv = query + 2 * self._shape.n_kv_heads * head_dim
        tensors = self._as_read(
            attention_norm=(attention_norm, (hidden,)),
            qkv=(qkv, (n_qkv, hidden)),
            qkv_bias=(qkv_bias, (n_qkv,)),
            q_norm=(q_norm, (head_dim,)),
            k_norm=(k_norm, (head_dim,)),
            output=(output, (hidden, query)),
            feed_forward_norm=(feed_forward_norm, (hidden,)),
            gate_up=(gate_up, (2 * inner, hidden)),
            down=(down, (hidden, inner)),
        )
        weights = LayerWeights(**{name: tensor.data_ptr() for name, tensor in tensors.items()})
        self._check(self._functions.cpu_model_set_layer(self._handle, index, ctypes.byref(weights)))

    def set_ends(self, *, embedding: Tensor, norm: Tensor, head: Tensor, rotary: Tensor) -> None:
        """rotary: float32 (max_model_len, head_dim), cosines of half a head, then its sines."""
        shape = self._shape
        tensors = self._as_read(
            embedding=(embedding, (shape.vocab, shape.hidden)),
            norm=(norm, (shape.hidden,)),
            head=(head, (shape.vocab, shape.hidden)),
        )
        if rotary.shape != (shape.max_model_len, shape.head_dim):
            raise ValueError(f"rotary is {tuple(rotary.shape)}")
        tensors["rotary"] = rotary.float().contiguous()
        addresses = [tensor.data_ptr() for tensor in tensors.values()]
        self._check(self._functions.cpu_model_set_ends(self._handle, *addresses))

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero the K and V of blocks in all layers."""
        array_ = array("i", blocks)
        address, n = array_.buffer_info()
        if not self._functions.cpu_model_clear(self._handle, address, n):
            raise EngineError(f"not all of the blocks {list(blocks)} exist")

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the K and V of blocks in all layers; each pair is from and to, none both."""
        sources, targets = array("i"), array("i")
        for source, target in pairs:
            sources.append(source)
            targets.append(target)
        addresses = (sources.buffer_info()[0], targets.buffer_info()[0])
        if not self._functions.cpu_model_copy(self._handle, *addresses, len(pairs)):
            raise EngineError(f"not all of the blocks {list(pairs)} exist")

    def step(self, rows: RaggedRows) -> Tensor:
        """Return the float32 logits of the sampled tokens; K and V of all go to the cache.

        What is returned is overwritten by the next step: fresh memory for some MB of logits would
        cost a step more than all of its attention.
        """
        if len(rows.sampled) > len(self._logits):
            n_columns = -(-self._shape.vocab // PANEL) * PANEL
            self._logits = torch.empty((len(rows.sampled), n_columns), dtype=torch.float32)
        arrays = [
            array_.buffer_info()[0]
            for array_ in (
                rows.token_ids,
                rows.n_new,
                rows.context_len,
                rows.table_start,
                rows.block_ids,
                rows.sampled,
            )
        ]
        step = StepRows(
            len(rows.token_ids),
            len(rows.n_new),
            len(rows.sampled),
            *arrays,
            self._logits.data_ptr(),
        )
        if not self._functions.cpu_model_step(self._handle, ctypes.byref(step)):
            raise EngineError("the rows of this step do not fit the compiled model")
        return self._logits[: len(rows.sampled), : self._shape.vocab]

    def _as_read(self, **given: tuple[Tensor | None, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return what is given, vectors in float32, as the library reads it by its address."""
        tensors = {}
        for name, (tensor, size) in given.items():
            if tensor is None:
                continue
            if tensor.shape != size or (len(size) == 2 and tensor.dtype != self._dtype):
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, not {size}"
                    f" of {self._dtype}"
                )
            tensors[name] = (tensor.float() if len(size) == 1 else tensor).contiguous()
        return tensors

    def _check(self, is_done: int) -> None:
        if not is_done:
            raise MemoryError("the weights of the compiled model")
