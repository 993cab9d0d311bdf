"""Random decoders on the compiled kernels, driven directly, beside the same in transformers."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine_service.config import QuantizationName
from engine_service.kernels.cpu.library import Shape
from engine_service.kernels.cpu.model import CompiledModel, RaggedRows
from tests.compiled import compiled_library

BLOCK_SIZE, N_BLOCKS, MAX_MODEL_LEN = 16, 256, 640
DTYPES = (torch.float32, torch.bfloat16)
INSTRUCTION_SETS = ("AMX", "AVX-512-BF16", "AVX-512", "AVX2")
# Sizes that are no multiple of a vector, a pair or a panel.
SHAPE: dict[str, Any] = {
    "hidden_size": 90,
    "intermediate_size": 101,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": MAX_MODEL_LEN,
}
PROMPTS = [list(range(3, 3 + n)) for n in (1, 15, 16, 17, 40, 90)]


def require(instruction_set: str) -> str:
    """Return it, or skip the test where this processor does not have it."""
    if instruction_set not in compiled_library().instruction_sets:
        pytest.skip(f"this processor has no {instruction_set}")
    return instruction_set


def reference(model_dir: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)


def shape_of(dtype: torch.dtype, **sizes: int) -> Shape:
    """Of SHAPE, but for ``sizes``."""
    return Shape(**{
        "dtype": DTYPES.index(dtype), "hidden": 90, "inner": 101, "n_layers": 2, "n_heads": 6,
        "n_kv_heads": 2, "head_dim": 16, "vocab": 320, "max_model_len": MAX_MODEL_LEN,
        "block_size": BLOCK_SIZE, "n_blocks": N_BLOCKS, "max_tokens": 2048, "n_threads": 2,
        "eps": 1e-6, **sizes,
    })  # fmt: skip


def load(
    model_dir: Path,
    instruction_set: str,
    *,
    dtype: torch.dtype = torch.float32,
    quantization: QuantizationName = "none",
    n_threads: int = 2,
    weights: Mapping[str, Tensor] | None = None,
) -> CompiledModel:
    """The model of ``reference``, or one of its sizes with other weights."""
    theirs = reference(model_dir, dtype)
    config = theirs.config
    model = CompiledModel(
        compiled_library(),
        shape_of(
            dtype,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            n_threads=n_threads,
        ),
        instruction_set=instruction_set,
        quantization=quantization,
    )
    fill(model, weights or theirs.state_dict(), head_dim=config.head_dim)
    return model


def fill(model: CompiledModel, weights: Mapping[str, Tensor], *, head_dim: int) -> None:
    for index in range(2):
        layer = f"model.layers.{index}."

        def stacked(*names: str, layer: str = layer) -> Tensor:
            return torch.cat([weights[f"{layer}{name}"] for name in names])

        optional = {
            "qkv_bias": [f"self_attn.{name}_proj.bias" for name in "qkv"],
            "q_norm": ["self_attn.q_norm.weight"],
            "k_norm": ["self_attn.k_norm.weight"],
        }

        model.set_layer(
            index,
            attention_norm=stacked("input_layernorm.weight"),
            qkv=stacked(*(f"self_attn.{name}_proj.weight" for name in "qkv")),
            output=stacked("self_attn.o_proj.weight"),
            feed_forward_norm=stacked("post_attention_layernorm.weight"),
            gate_up=stacked("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            down=stacked("mlp.down_proj.weight"),
            **{
                key: stacked(*names)
                for key, names in optional.items()
                if f"{layer}{names[0]}" in weights
            },
        )
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(MAX_MODEL_LEN).float(), frequencies)
    model.set_ends(
        embedding=weights["model.embed_tokens.weight"],
        norm=weights["model.norm.weight"],
        head=weights["lm_head.weight"],
        rotary=torch.cat((angles.cos(), angles.sin()), dim=-1),
    )


def last_logits(
    model: CompiledModel, prompts: Sequence[list[int]], *, chunk: int = 640
) -> list[Tensor]:
    """Logits behind each prompt; all together, at most ``chunk`` tokens of each a step."""
    tables, free = [], iter(range(N_BLOCKS))
    for prompt in prompts:
        tables.append([next(free) for _ in range(-(-len(prompt) // BLOCK_SIZE))])
    found: dict[int, Tensor] = {}
    start = 0
    while len(found) < len(prompts):
        rows, ended = RaggedRows(), []
        for key, prompt in enumerate(prompts):
            part = prompt[start : start + chunk]
            if not part:
                continue
            rows.token_ids.extend(part)
            rows.n_new.append(len(part))
            rows.context_len.append(start + len(part))
            rows.table_start.append(len(rows.block_ids))
            rows.block_ids.extend(array("i", tables[key]))
            if start + len(part) == len(prompt):
                rows.sampled.append(len(rows.token_ids) - 1)
                ended.append(key)
        logits = model.step(rows)
        found |= {key: logits[place].clone() for place, key in enumerate(ended)}
        start += chunk
    return [found[key] for key in range(len(prompts))]


def logits_of(model: Any, prompts: Sequence[list[int]] = PROMPTS) -> Tensor:
    """(n_prompts, vocab) of transformers behind each prompt, in float32."""
    with torch.inference_mode():
        return torch.stack([model(torch.tensor([p])).logits[0, -1].float() for p in prompts])
