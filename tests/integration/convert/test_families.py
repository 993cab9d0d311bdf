"""A directory that transformers saved is imported and served, whichever family it is of."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, ModelConfig
from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import convert
from engine_service.errors import ModelError
from engine_service.families import FAMILIES
from engine_service.models.manifest import MANIFEST_NAME
from engine_service.models.registry import MODELS
from tests.models import random_model_dir
from tests.parity import compare, reference_answers, run_backend

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("llama", {}),
    "MistralForCausalLM": ("mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "Qwen2ForCausalLM": ("qwen2", {}),
    "Qwen3ForCausalLM": ("qwen3", {"head_dim": 32}),
}


def saved(tmp_path: Path, architecture: str) -> Path:
    family, settings = SETTINGS[architecture]
    source = random_model_dir(tmp_path, family, **settings)
    (source / MANIFEST_NAME).unlink()
    return source


def test_every_family_has_a_reader_and_a_test() -> None:
    assert list(FAMILIES) == list(MODELS) == list(SETTINGS)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_an_imported_family_answers_as_transformers(tmp_path: Path, architecture: str) -> None:
    source, output = saved(tmp_path, architecture), tmp_path / "imported"
    manifest = convert(source, output, report=lambda _: None)
    assert (manifest.architecture, manifest.dtype) == (architecture, "float32")
    rng = random.Random(3)
    prompts = [tuple(rng.randrange(320) for _ in range(n)) for n in (5, 40)]
    backend = NativeBackend(EngineConfig(model_dir=output, dtype="float32"))
    assert backend.info.architecture == architecture
    answers = reference_answers(source, prompts=prompts, n_tokens=16)
    assert compare(answers, run_backend(backend)).differences == []


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Qwen2ForCausalLM", "model.layers.1.self_attn.k_proj.bias"),
        ("Qwen3ForCausalLM", "model.layers.1.self_attn.q_norm.weight"),
    ],
)
def test_a_tensor_that_a_family_needs_is_missed_by_name(
    tmp_path: Path, architecture: str, name: str
) -> None:
    source = saved(tmp_path, architecture)
    path = source / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConversionError, match="is missing") as caught:
        convert(source, tmp_path / "imported", report=lambda _: None)
    assert caught.value.field == name


def test_a_bias_is_no_part_of_a_llama(tmp_path: Path) -> None:
    source = saved(tmp_path, "Qwen2ForCausalLM")
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="no part of a supported LlamaForCausalLM"):
        convert(source, tmp_path / "imported", report=lambda _: None)


def test_a_window_is_imported_and_served_as_far_as_it_shows(tmp_path: Path) -> None:
    source = random_model_dir(tmp_path, "mistral", sliding_window=64)
    (source / MANIFEST_NAME).unlink()
    output = tmp_path / "imported"
    convert(source, output, report=lambda _: None)
    assert ModelConfig.from_dir(output).sliding_window == 64
    served = NativeBackend(EngineConfig(model_dir=output, dtype="float32"))
    assert served.info.max_model_len == 64
    with pytest.raises(ModelError, match="sliding_window"):
        NativeBackend(EngineConfig(model_dir=output, dtype="float32", max_model_len=65))
