"""Which class runs which architecture, and loading one from a verified directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.models.llama import LlamaModel
from engine_service.models.manifest import verify_manifest
from engine_service.models.weights import WeightReader

MODELS: Final[Mapping[str, type[LlamaModel]]] = {"LlamaForCausalLM": LlamaModel}


def load_model(
    model_dir: Path, *, config: ModelConfig, max_model_len: int, dtype: torch.dtype
) -> LlamaModel:
    """Verify a model directory against its manifest and load it.

    Raises:
        ModelError: it is altered, incomplete, or of an architecture that is not implemented.
    """
    model_class = MODELS.get(config.architecture)
    if model_class is None:
        raise ModelError(
            f"the architecture {config.architecture} is not supported; these are: "
            f"{', '.join(sorted(MODELS))}"
        )
    manifest = verify_manifest(model_dir)
    if manifest.architecture != config.architecture:
        raise ModelError(
            f"the manifest says {manifest.architecture}, config.json {config.architecture}"
        )
    paths = [model_dir / name for name in manifest.files if name.endswith(".safetensors")]
    with WeightReader(paths, dtype=dtype) as weights:
        return model_class(config, weights=weights, max_model_len=max_model_len, dtype=dtype)
