"""What is settled about a model on a device before a weight of it is read."""

from dataclasses import dataclass

import torch

from engine_service.config import EngineConfig, ModelConfig
from engine_service.kernels.device import DeviceKernels
from engine_service.kernels.paged_attention import Attention
from engine_service.layers.decoder import Decoder
from engine_service.models.shard import Shard
from engine_service.runner.device_model import DeviceModel, Join, KVPool, PoolShape


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """shard: the part of the model that this device has. max_len: most tokens of a sequence."""

    config: EngineConfig
    model_config: ModelConfig
    shard: Shard
    dtype: torch.dtype
    max_len: int

    @property
    def kv_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn if self.config.kv_cache_dtype == "fp8" else self.dtype

    @property
    def max_blocks(self) -> int:
        """Of a sequence."""
        return -(-self.max_len // self.config.block_size)

    @property
    def local_config(self) -> ModelConfig:
        """The model's sizes as this device has them."""
        return self.shard.of(self.model_config)

    def model(
        self,
        decoder: Decoder,
        *,
        kernels: DeviceKernels,
        device: torch.device,
        reduce: Join | None = None,
        gather: Join | None = None,
        attention: Attention | None = None,
    ) -> DeviceModel:
        """Return a model without a KV pool."""
        config = self.config
        return DeviceModel(
            decoder,
            kernels=kernels,
            device=device,
            eps=self.model_config.rms_norm_eps,
            max_rows=config.max_sequences,
            # Each sequence may have guesses, which are drawn for, too.
            max_draws=config.max_batched_tokens,
            max_blocks=self.max_blocks,
            reduce=reduce,
            gather=gather,
            is_quantized=config.quantization != "none",
            attention=attention,
        )

    def pool(self, n_blocks: int, *, device: torch.device) -> KVPool:
        local = self.local_config
        shape = PoolShape(
            n_layers=local.n_layers,
            n_blocks=n_blocks,
            block_size=self.config.block_size,
            n_kv_heads=local.n_kv_heads,
            head_dim=local.head_dim,
        )
        return KVPool(shape, dtype=self.kv_dtype, device=device)
