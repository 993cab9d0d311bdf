"""Qwen3: as Llama, with each head of q and k normalised before it is rotated.

The size of a head is the configuration's own, whatever the hidden size.
"""

import torch

from engine_service.config import ModelConfig
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder
from engine_service.layers.layernorm import RMSNorm
from engine_service.models.assembly import read_attention, read_decoder
from engine_service.models.weights import WeightReader


def read_qwen3(
    config: ModelConfig, *, weights: WeightReader, max_model_len: int, dtype: torch.dtype
) -> Decoder:
    def norm(name: str) -> RMSNorm:
        weight = weights.take(name, shape=(config.head_dim,))
        return RMSNorm(weight=weight, eps=config.rms_norm_eps)

    def attention(prefix: str) -> Attention:
        return read_attention(
            config,
            weights,
            prefix=prefix,
            q_norm=norm(f"{prefix}q_norm.weight"),
            k_norm=norm(f"{prefix}k_norm.weight"),
        )

    return read_decoder(
        config,
        weights=weights,
        max_model_len=max_model_len,
        dtype=dtype,
        read_attention=attention,
    )
