"""A decoder of the Llama family whose whole step is one call into the compiled library."""

import ctypes
import weakref
from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine_service.errors import EngineError
from engine_service.kernels.cpu.library import PANEL, Library, Shape, StepRows


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

    Not for two threads at once. Every layer and the ends must be set before the first step.
    """

    def __init__(self, library: Library, shape: Shape, *, instruction_set: str) -> None:
        self._functions = library.functions
        self._vocab_size: int = shape.vocab
        self._logits = torch.empty((0, 0), dtype=torch.float32)
        handle = self._functions.cpu_model_new(ctypes.byref(shape), instruction_set.encode())
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
    ) -> None:
        """Copy one layer's tensors of the model's dtype, products as (n_out, n_in)."""
        attention_norm, feed_forward_norm = attention_norm.float(), feed_forward_norm.float()
        self._check(
            self._functions.cpu_model_set_layer(
                self._handle,
                index,
                attention_norm.data_ptr(),
                qkv.data_ptr(),
                output.data_ptr(),
                feed_forward_norm.data_ptr(),
                gate_up.data_ptr(),
                down.data_ptr(),
            )
        )

    def set_ends(self, *, embedding: Tensor, norm: Tensor, head: Tensor, rotary: Tensor) -> None:
        """rotary: float32 (max_model_len, head_dim), cosines of half a head, then its sines."""
        norm = norm.float()
        self._check(
            self._functions.cpu_model_set_ends(
                self._handle,
                embedding.data_ptr(),
                norm.data_ptr(),
                head.data_ptr(),
                rotary.data_ptr(),
            )
        )

    def step(self, rows: RaggedRows) -> Tensor:
        """Return the float32 logits of the sampled tokens; K and V of all go to the cache.

        What is returned is overwritten by the next step: fresh memory for some MB of logits would
        cost a step more than all of its attention.
        """
        if len(rows.sampled) > len(self._logits):
            n_columns = -(-self._vocab_size // PANEL) * PANEL
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
        return self._logits[: len(rows.sampled), : self._vocab_size]

    def _check(self, is_done: int) -> None:
        if not is_done:
            raise MemoryError("the weights of the compiled model")
