"""The compiled step of a decoder, called directly: against transformers in float32, on every
instruction set that this processor has, and bit for bit the same in any company."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine_service.kernels.cpu.library import Shape
from engine_service.kernels.cpu.model import CompiledModel, RaggedRows
from tests.compiled import compiled_library
from tests.models import random_llama_dir

BLOCK_SIZE, N_BLOCKS, MAX_MODEL_LEN = 16, 128, 128
INSTRUCTION_SETS = ("AVX-512-BF16", "AVX-512", "AVX2")
# Sizes that are no multiple of a vector, a pair or a panel.
SHAPE: dict[str, Any] = {
    "hidden_size": 90,
    "intermediate_size": 101,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
PROMPTS = [list(range(3, 3 + n)) for n in (1, 15, 16, 17, 40, 90)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in compiled_library().instruction_sets:
        pytest.skip(f"this processor has no {name}")
    return name


def load(model_dir: Path, instruction_set: str) -> CompiledModel:
    weights = load_file(model_dir / "model.safetensors")
    shape = Shape(
        dtype=0, hidden=90, inner=101, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=16, vocab=320,
        max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, n_blocks=N_BLOCKS, max_tokens=512,
        n_threads=2, eps=1e-6,
    )  # fmt: skip
    model = CompiledModel(compiled_library(), shape, instruction_set=instruction_set)
    for index in range(2):
        layer = f"model.layers.{index}."

        def stacked(*names: str, layer: str = layer) -> Tensor:
            return torch.cat([weights[f"{layer}{name}.weight"] for name in names]).contiguous()

        model.set_layer(
            index,
            attention_norm=stacked("input_layernorm"),
            qkv=stacked("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=stacked("self_attn.o_proj"),
            feed_forward_norm=stacked("post_attention_layernorm"),
            gate_up=stacked("mlp.gate_proj", "mlp.up_proj"),
            down=stacked("mlp.down_proj"),
        )
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, 16, 2).float() / 16)
    angles = torch.outer(torch.arange(MAX_MODEL_LEN).float(), frequencies)
    model.set_ends(
        embedding=weights["model.embed_tokens.weight"],
        norm=weights["model.norm.weight"],
        head=weights["lm_head.weight"],
        rotary=torch.cat((angles.cos(), angles.sin()), dim=-1).contiguous(),
    )
    return model


def last_logits(
    model: CompiledModel, prompts: Sequence[list[int]], *, chunk: int = 512
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


def test_logits_are_those_of_transformers(model_dir: Path, instruction_set: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found = last_logits(load(model_dir, instruction_set), PROMPTS)
    for prompt, logits in zip(PROMPTS, found, strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_row_has_the_same_bits_in_any_company(
    model_dir: Path, instruction_set: str, chunk: int
) -> None:
    model = load(model_dir, instruction_set)
    together = last_logits(model, PROMPTS, chunk=chunk)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        (alone,) = last_logits(model, [prompt])
        assert torch.equal(alone, logits)
