"""A large model made from a small one, so that the small one can guess for it: both say the same.

The layers that are added write nothing to the residual stream (the last products of attention and
of the feed-forward layer are zero), and cost what any layer costs. So a small model can be had that
agrees with a large one as often as is wanted, by noise in its weights, where no pair of real models
is at hand. What is measured with them is the engine, at a stated rate of agreement.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine_service.models.manifest import read_manifest, write_manifest

_LAST_PRODUCTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deepened(model_dir: Path, into: Path, *, n_more: int) -> Path:
    """Write the model with ``n_more`` layers behind its own, copies of its last, which add
    nothing. Return the directory."""
    tensors = _load(model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    n_layers = config["num_hidden_layers"]
    last = f"model.layers.{n_layers - 1}."
    for name in [each for each in tensors if each.startswith(last)]:
        part = name.removeprefix(last)
        for index in range(n_layers, n_layers + n_more):
            is_silent = part in _LAST_PRODUCTS
            values = torch.zeros_like(tensors[name]) if is_silent else tensors[name].clone()
            tensors[f"model.layers.{index}.{part}"] = values
    config["num_hidden_layers"] = n_layers + n_more
    return _write(into, like=model_dir, config=config, tensors=tensors)


def noisy(model_dir: Path, into: Path, *, share: float) -> Path:
    """Write the model with noise on its matrices, ``share`` of their own standard deviation."""
    generator = torch.Generator().manual_seed(0)
    tensors = _load(model_dir)
    for values in tensors.values():
        if values.dim() == 2:
            noise = torch.randn(values.shape, generator=generator) * values.float().std()
            values += (noise * share).to(values.dtype)
    config = json.loads((model_dir / "config.json").read_text())
    return _write(into, like=model_dir, config=config, tensors=tensors)


def _load(model_dir: Path) -> dict[str, torch.Tensor]:
    return {
        name: values
        for path in sorted(model_dir.glob("*.safetensors"))
        for name, values in load_file(path).items()
    }


def _write(
    into: Path, *, like: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]
) -> Path:
    into.mkdir(parents=True)
    for path in like.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("manifest.json", "config.json"):
            (into / path.name).write_bytes(path.read_bytes())
    (into / "config.json").write_text(json.dumps(config))
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    write_manifest(into, read_manifest(like))
    return into
