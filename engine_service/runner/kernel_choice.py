"""Chooses what computes the steps of a model, and says so."""

import logging

import torch

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.layers.decoder import Decoder
from engine_service.runner.compiled import CompiledExecutor, Unavailable, compiled_shape
from engine_service.runner.executors import Executor, ReferenceExecutor
from engine_service.runner.kv_cache import KVCache

logger = logging.getLogger(__name__)


def make_executor(
    model: Decoder,
    *,
    config: EngineConfig,
    model_config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
) -> Executor:
    """Give a model and an empty KV pool to the kernels that ``config`` asks for.

    Raises:
        ModelError: the compiled ones, or a quantization, are asked for and cannot be had, or memory
            is short.
    """
    if config.kernels != "reference":
        shape = compiled_shape(config, model=model_config, max_model_len=max_model_len, dtype=dtype)
        try:
            return CompiledExecutor(
                model,
                shape=shape,
                instruction_set=config.instruction_set,
                quantization=config.quantization,
            )
        except Unavailable as reason:
            if config.kernels == "compiled" or config.quantization != "none":
                raise ModelError(f"the compiled kernels cannot run: {reason}") from reason
            logger.warning("running the slower reference kernels: %s", reason)
    kv_cache = KVCache(
        model_config, n_blocks=config.n_blocks, block_size=config.block_size, dtype=dtype
    )
    return ReferenceExecutor(model, kv_cache=kv_cache, block_size=config.block_size, dtype=dtype)
