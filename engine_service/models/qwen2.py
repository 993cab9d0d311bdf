"""Qwen2: as Llama, with biases on the projections of q, k and v."""

import torch

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder
from engine_service.models.assembly import read_attention, read_decoder
from engine_service.models.weights import WeightReader


def read_qwen2(
    config: ModelConfig, *, weights: WeightReader, max_model_len: int, dtype: torch.dtype
) -> Decoder:
    def attention(prefix: str) -> Attention:
        return read_attention(config, weights, prefix=prefix, has_bias=True)

    return read_decoder(
        config,
        weights=weights,
        max_model_len=max_model_len,
        dtype=dtype,
        read_attention=attention,
    )
