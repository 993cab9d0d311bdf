"""The Llama family: RMSNorm, rotary positions, grouped K/V heads, a gated feed-forward layer."""

import torch

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder
from engine_service.models.assembly import read_attention, read_decoder
from engine_service.models.weights import WeightReader


def read_llama(
    config: ModelConfig, *, weights: WeightReader, max_model_len: int, dtype: torch.dtype
) -> Decoder:
    def attention(prefix: str) -> Attention:
        return read_attention(config, weights, prefix=prefix)

    return read_decoder(
        config,
        weights=weights,
        max_model_len=max_model_len,
        dtype=dtype,
        read_attention=attention,
    )
