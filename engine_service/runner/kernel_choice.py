"""Chooses what computes the steps of a model, and in which numbers, and says so."""

import logging
from dataclasses import dataclass

import torch

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.layers.decoder import Decoder
from engine_service.runner.compiled import (
    CompiledExecutor,
    CompiledKernels,
    Unavailable,
    compiled_shape,
    find_kernels,
)
from engine_service.runner.devices import multiplies_bfloat16
from engine_service.runner.executors import Executor, ReferenceExecutor
from engine_service.runner.kv_cache import KVCache
from engine_service.runner.kv_tiers import NEEDS_POOL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """compiled: None for the reference kernels."""

    compiled: CompiledKernels | None
    dtype: torch.dtype


def choose_kernels(
    config: EngineConfig, *, model_config: ModelConfig, max_model_len: int
) -> KernelChoice:
    """Settle what ``config`` leaves open, before any weight is read.

    Raises:
        ModelError: the compiled kernels, or a quantization, are asked for and cannot be had, or
            with these kernels host_kv_cache_bytes cannot.
    """
    for name in ("quantization", "kv_cache_dtype"):
        if getattr(config, name) == "fp8":
            raise ModelError(f"{name} fp8 needs a GPU: this engine computes on the processor")
    compiled = None
    if config.kernels != "reference":
        shape = compiled_shape(
            config, model=model_config, max_model_len=max_model_len, dtype=torch.float32
        )
        try:
            compiled = find_kernels(shape, instruction_set=config.instruction_set)
        except Unavailable as reason:
            if config.kernels == "compiled" or config.quantization != "none":
                raise ModelError(f"the compiled kernels cannot run: {reason}") from reason
            logger.warning("running the slower reference kernels: %s", reason)
    if compiled is not None and config.host_kv_cache_bytes:
        raise ModelError(NEEDS_POOL)
    # The compiled ones gain from bfloat16 everywhere: it is half the memory that a step reads.
    # To torch it is slow where the processor does not multiply it.
    is_narrow = config.dtype == "bfloat16" or (
        config.dtype == "auto" and (compiled is not None or multiplies_bfloat16())
    )
    return KernelChoice(compiled, torch.bfloat16 if is_narrow else torch.float32)


def make_executor(
    model: Decoder,
    choice: KernelChoice,
    *,
    config: EngineConfig,
    model_config: ModelConfig,
    max_model_len: int,
) -> Executor:
    """Give a model, of the dtype chosen, and an empty KV pool to the kernels chosen.

    Raises ModelError where memory is short.
    """
    if choice.compiled is not None:
        shape = compiled_shape(
            config, model=model_config, max_model_len=max_model_len, dtype=choice.dtype
        )
        return CompiledExecutor(
            model, kernels=choice.compiled, shape=shape, quantization=config.quantization
        )
    kv_cache = KVCache(
        model_config, n_blocks=config.n_blocks, block_size=config.block_size, dtype=choice.dtype
    )
    return ReferenceExecutor(
        model, kv_cache=kv_cache, block_size=config.block_size, dtype=choice.dtype
    )
