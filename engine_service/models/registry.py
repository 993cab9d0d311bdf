"""Which function reads which architecture, and loading one from a verified directory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import torch

from engine_service.config import ModelConfig, QuantizationName
from engine_service.encoder_config import EncoderConfig
from engine_service.errors import ModelError
from engine_service.layers.decoder import Decoder
from engine_service.layers.encoder import Encoder
from engine_service.models.bert import read_bert
from engine_service.models.llama import read_llama
from engine_service.models.manifest import verify_manifest
from engine_service.models.mistral import read_mistral
from engine_service.models.qwen2 import read_qwen2
from engine_service.models.qwen3 import read_qwen3
from engine_service.models.shard import WHOLE, Shard
from engine_service.models.weights import WeightReader


class ReadModel(Protocol):
    """Takes the reader's shard of every tensor; raises ModelError for one missing, misshapen or
    unknown."""

    def __call__(
        self, config: ModelConfig, *, weights: WeightReader, max_model_len: int, dtype: torch.dtype
    ) -> Decoder: ...


# One for each of ``families.FAMILIES``: reading the configuration refuses any other.
MODELS: Final[Mapping[str, ReadModel]] = {
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
}


def load_model(
    model_dir: Path,
    *,
    config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
    shard: Shard = WHOLE,
    device: torch.device | None = None,
    quantization: QuantizationName = "none",
) -> Decoder:
    """Verify a model directory against its manifest and load it, or a shard of it, on ``device``.

    quantization: each matrix gets its eight bits as soon as it is read, so that at any time one of
    them at most is there in ``dtype`` too. A head that is tied to the embedding is a copy of it.

    Raises:
        ModelError: it is altered, incomplete, not what its configuration says, or cannot be cut.
    """
    shard.check(config)
    with _verified_weights(
        model_dir,
        architecture=config.architecture,
        dtype=dtype,
        shard=shard,
        device=device,
        quantization=quantization,
    ) as weights:
        read = MODELS[config.architecture]
        return read(config, weights=weights, max_model_len=max_model_len, dtype=dtype)


def load_encoder(model_dir: Path, *, config: EncoderConfig, dtype: torch.dtype) -> Encoder:
    """Verify an embedding model's directory against its manifest and load it.

    Raises:
        ModelError: it is altered, incomplete, or not what its configuration says.
    """
    with _verified_weights(model_dir, architecture=config.architecture, dtype=dtype) as weights:
        return read_bert(config, weights=weights)


@contextmanager
def _verified_weights(
    model_dir: Path,
    *,
    architecture: str,
    dtype: torch.dtype,
    shard: Shard = WHOLE,
    device: torch.device | None = None,
    quantization: QuantizationName = "none",
) -> Iterator[WeightReader]:
    manifest = verify_manifest(model_dir)
    if manifest.architecture != architecture:
        raise ModelError(f"the manifest says {manifest.architecture}, config.json {architecture}")
    paths = [model_dir / name for name in manifest.files if name.endswith(".safetensors")]
    with WeightReader(
        paths, dtype=dtype, shard=shard, device=device, quantization=quantization
    ) as weights:
        yield weights
