"""Models whose products have the numbers that weights of eight bits stand for."""

import json
from pathlib import Path

import torch
from torch import Tensor

from engine_service.kernels.quantization import Kind, dequantize_weight, quantize_weight
from tests.integration.engine.backend import altered

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_CUT_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")


def dequantized_dir(
    model_dir: Path,
    tmp_path: Path,
    *,
    kind: Kind,
    dtype: torch.dtype = torch.float32,
    n_ranks: int = 1,
) -> Path:
    """Copy a model with the numbers that an engine of ``dtype`` computes with: all rounded to that,
    and matrices as their eight bits stand for, those that ranks cut by columns a part at a time. A
    head that was tied to the embedding is not any more."""

    def change(tensors: dict[str, Tensor]) -> None:
        described = tmp_path / "altered" / "config.json"
        settings = json.loads(described.read_text())
        if settings["tie_word_embeddings"]:
            tensors[_HEAD] = tensors[_EMBEDDING]
            described.write_text(json.dumps({**settings, "tie_word_embeddings": False}))
        for name, weight in tensors.items():
            rounded = weight.to(dtype)
            if weight.dim() == 2 and name != _EMBEDDING:
                n_parts = n_ranks if name.endswith(_CUT_BY_COLUMNS) else 1
                parts = [quantize_weight(part, kind=kind) for part in rounded.chunk(n_parts, dim=1)]
                rounded = torch.cat([dequantize_weight(part) for part in parts], dim=1)
                if kind == "int8":  # fp8's scale is applied to a sum
                    rounded = rounded.to(dtype)
            tensors[name] = rounded.float().contiguous()

    return altered(model_dir, tmp_path, change)
