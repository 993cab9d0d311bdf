"""The compiled kernels as an executor, and whether they can run a model here."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.config import EngineConfig, ModelConfig, QuantizationName
from engine_service.errors import ModelError
from engine_service.kernels.cpu.build import obstacle
from engine_service.kernels.cpu.library import Library, Shape, load_library, unsupported
from engine_service.kernels.cpu.model import CompiledModel, RaggedRows
from engine_service.layers.decoder import Decoder, DecoderLayer
from engine_service.runner.kv_tiers import BlockPool
from engine_service.scheduling.batch import Batch

_MAX_INT32 = 2**31 - 1


class Unavailable(Exception):
    """The compiled kernels cannot run this model on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class CompiledKernels:
    library: Library
    instruction_set: str


class CompiledExecutor:
    """A whole step in one call, whatever the family. The weights of ``model`` become its own.

    What was read of a layer is let go once it is packed, so that loading takes the memory of the
    packed model, its embedding and one layer.

    Raises ModelError where there is not enough memory.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        kernels: CompiledKernels,
        shape: Shape,
        quantization: QuantizationName,
    ) -> None:
        self.kernels = f"compiled {kernels.instruction_set}"
        self.pool: BlockPool | None = None
        try:
            self._model = CompiledModel(
                kernels.library,
                shape,
                instruction_set=kernels.instruction_set,
                quantization=quantization,
            )
            for index, layer in enumerate(model.layers):
                _hand_over(layer, to=self._model, index=index)
            self._model.set_ends(
                embedding=model.embedding.weight,
                norm=model.norm.weight,
                head=model.head.take(),
                rotary=model.rotary.table,
            )
        except MemoryError as error:
            raise ModelError(
                f"{error} and a KV pool of {shape.n_blocks * shape.block_size} tokens take more "
                "memory than can be had: lower kv_cache_tokens"
            ) from error

    def forward(self, batch: Batch) -> Tensor:
        return self._model.step(ragged_rows(batch))

    def clear(self, blocks: SequenceOf[int]) -> None:
        self._model.clear(blocks)

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        self._model.copy(pairs)


def compiled_shape(
    config: EngineConfig, *, model: ModelConfig, max_model_len: int, dtype: torch.dtype
) -> Shape:
    """Describe a model to the library. Raises ModelError for a pool that it cannot count."""
    if config.n_blocks > _MAX_INT32:
        raise ModelError(
            f"kv_cache_tokens ({config.n_blocks * config.block_size}) makes {config.n_blocks} "
            f"blocks; the compiled kernels count up to {_MAX_INT32}"
        )
    return Shape(
        dtype=int(dtype == torch.bfloat16),
        hidden=model.hidden_size,
        inner=model.intermediate_size,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        vocab=model.vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        n_blocks=config.n_blocks,
        max_tokens=config.max_batched_tokens,
        n_threads=config.n_threads or torch.get_num_threads(),
        eps=model.rms_norm_eps,
    )


def ragged_rows(batch: Batch) -> RaggedRows:
    """Describe a batch to the library: 3 us a sequence, 7 us where it has 128 blocks."""
    rows = RaggedRows()
    for row in batch.rows:
        rows.token_ids.fromlist(row.token_ids)
        rows.n_new.append(row.n_new)
        rows.context_len.append(row.end)
        rows.table_start.append(len(rows.block_ids))
        rows.block_ids.fromlist(row.sequence.block_table)
    rows.sampled.fromlist(batch.logit_places())
    return rows


def find_kernels(shape: Shape, *, instruction_set: str | None) -> CompiledKernels:
    """Return what can run a model of this shape, whatever its dtype, the best where none is named.

    Raises:
        Unavailable: there is no library, or it does not know the sizes or the instruction set.
    """
    if (reason := unsupported(shape)) is not None:
        raise Unavailable(reason)
    library = _find_library()
    chosen = instruction_set or library.instruction_sets[0]
    if chosen not in library.instruction_sets:
        has = ", ".join(library.instruction_sets)
        raise Unavailable(f"instruction_set {chosen} is not one that this processor has: {has}")
    return CompiledKernels(library, chosen)


def _find_library() -> Library:
    try:
        library = load_library()
    except OSError as error:
        raise Unavailable(f"the library does not load: {error}") from error
    if library is None:
        raise Unavailable(
            obstacle() or "they are not built (python -m engine_service.kernels.cpu.build)"
        )
    if not library.instruction_sets:
        raise Unavailable("this processor has none of the instruction sets they are built for")
    return library


def _hand_over(layer: DecoderLayer, *, to: CompiledModel, index: int) -> None:
    attention, feed_forward = layer.attention, layer.feed_forward
    to.set_layer(
        index,
        attention_norm=layer.attention_norm.weight,
        qkv=attention.qkv.take(),
        qkv_bias=attention.qkv.bias,
        q_norm=None if attention.q_norm is None else attention.q_norm.weight,
        k_norm=None if attention.k_norm is None else attention.k_norm.weight,
        output=attention.output.take(),
        feed_forward_norm=layer.feed_forward_norm.weight,
        gate_up=feed_forward.gate_up.take(),
        down=feed_forward.down.take(),
    )
