"""A tiny model whose weights are large, so that moving it takes a while; without torch."""

from pathlib import Path

import numpy as np

from tests.unit.convert.builders import HIDDEN, hugging_face_config, hugging_face_dir, weights


def wide_model_dir(directory: Path, *, mb: int = 4, seed: int = 0) -> Path:
    """A Llama as a Hugging Face directory, of about so many megabytes. seed: for others of the same
    size."""
    inner = (mb << 20) // (3 * HIDDEN * 4) // 64 * 64
    tensors = weights(seed=seed)
    generator = np.random.default_rng(seed)
    for name in ("gate_proj", "up_proj", "down_proj"):
        shape = (HIDDEN, inner) if name == "down_proj" else (inner, HIDDEN)
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        tensors[f"model.layers.0.mlp.{name}.weight"] = values
    config = hugging_face_config(intermediate_size=inner)
    return hugging_face_dir(directory / f"wide-{mb}-{seed}", config=config, tensors=tensors)
