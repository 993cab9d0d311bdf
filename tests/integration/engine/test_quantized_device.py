"""A device's model with weights of eight bits gives the tokens of one whose weights are what those
stand for, and holds no matrix twice."""

import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, ModelConfig, QuantizationName
from engine_service.errors import ModelError
from engine_service.kernels.quantization import Kind, QuantizedWeight, quantize_weight
from engine_service.models import weights
from engine_service.models.registry import load_model
from tests.families import MODELS
from tests.integration.engine.test_tensor_parallel import config_of, prompts_of, two_ranks
from tests.models import random_llama_dir, random_model_dir
from tests.parity import run_backend
from tests.quantized_models import dequantized_dir

KINDS: list[Kind] = ["int8", "fp8"]
N_TOKENS = 24
# One of each family, heads tied and not, with biases and without.
FAMILIES = (
    "llama: tied, grouped heads",
    "mistral: no window",
    "qwen2: untied, yarn rotary",
    "qwen3: tied, wide heads",
)


def answers(config: EngineConfig) -> list[list[int]]:
    prompts = prompts_of(random.Random(7))
    return run_backend(NativeBackend(config))(prompts, [N_TOKENS] * len(prompts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_model_of_its_dequantized_weights(tmp_path: Path, name: str, kind: Kind) -> None:
    family, settings = MODELS[name]
    model_dir = random_model_dir(tmp_path, family, **settings)
    found = answers(config_of(model_dir, quantization=kind))
    assert found == answers(config_of(dequantized_dir(model_dir, tmp_path, kind=kind)))
    assert found != answers(config_of(model_dir))  # or the comparison could not fail


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held(tmp_path: Path, kind: QuantizationName) -> None:
    """Products have eight bits; what rows are looked up in, added or normed has not."""
    model_dir = random_llama_dir(tmp_path)
    decoder = load_model(
        model_dir,
        config=ModelConfig.from_dir(model_dir),
        max_model_len=64,
        dtype=torch.bfloat16,
        quantization=kind,
    )
    assert decoder.embedding.weight.dtype == torch.bfloat16
    head = decoder.head.take_quantized()
    assert (head.n_out, head.n_in) == decoder.embedding.weight.shape
    for layer in decoder.layers:
        assert layer.attention_norm.weight.dtype == torch.bfloat16
        attention, feed_forward = layer.attention, layer.feed_forward
        for linear in (attention.qkv, attention.output, feed_forward.gate_up, feed_forward.down):
            assert linear.take_quantized().values.element_size() == 1
            with pytest.raises(RuntimeError, match="taken already"):
                linear.take_quantized()


@pytest.mark.parametrize("tied", [True, False])
def test_no_matrix_is_there_when_the_next_one_is_read(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = random_llama_dir(tmp_path, tie_word_embeddings=tied)
    seen: list[weakref.ref[torch.Tensor]] = []
    n_alive: list[int] = []

    def watched(weight: torch.Tensor, *, kind: Kind) -> QuantizedWeight:
        seen.append(weakref.ref(weight))
        n_alive.append(sum(each() is not None for each in seen))
        return quantize_weight(weight, kind=kind)

    monkeypatch.setattr(weights, "quantize_weight", watched)
    decoder = load_model(
        model_dir,
        config=ModelConfig.from_dir(model_dir),
        max_model_len=64,
        dtype=torch.bfloat16,
        quantization="int8",
    )
    assert n_alive == [1] * (2 * 4 + 1)
    assert (seen[-1]() is decoder.embedding.weight) == tied


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_quantize_what_they_hold(tmp_path: Path, kind: Kind) -> None:
    """int8's groups are what they are uncut; fp8's scales are those of the inputs of a rank."""
    settings: dict[str, Any] = {"intermediate_size": 128, "tie_word_embeddings": False}
    model_dir = random_model_dir(tmp_path, "qwen3", **settings)
    prompts = prompts_of(random.Random(7))
    with two_ranks(model_dir, quantization=kind) as backend:
        assert backend.info.quantization == kind
        found = run_backend(backend)(prompts, [N_TOKENS] * len(prompts))
    n_ranks = 1 if kind == "int8" else 2
    copy = dequantized_dir(model_dir, tmp_path, kind=kind, n_ranks=n_ranks)
    assert found == answers(config_of(copy))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"intermediate_size \(96\) into parts of 48; quantization int8 needs multiples of 32"),
        ({"intermediate_size": 128, "hidden_size": 32}, r"head_dim \(32\) into parts of 16"),
    ],
)
def test_a_cut_through_groups_is_refused(
    tmp_path: Path, settings: dict[str, int], said: str
) -> None:
    model_dir = random_llama_dir(tmp_path, **settings)
    with (
        pytest.raises(ModelError, match=said),
        two_ranks(model_dir, quantization="int8"),
    ):
        pass


def test_it_says_what_keys_and_values_are_stored_in(tmp_path: Path) -> None:
    model_dir = random_llama_dir(tmp_path)
    plain, narrow = config_of(model_dir), config_of(model_dir, kv_cache_dtype="fp8")
    assert [NativeBackend(each).info.kv_cache_dtype for each in (plain, narrow)] == ["auto", "fp8"]
    assert answers(narrow) != answers(plain), "else nobody need say so"
