"""Settings that cannot work and model options that are not implemented are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


def read(
    tmp_path: Path, *, generation: dict[str, Any] | None = None, **changes: Any
) -> ModelConfig:
    fields = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_dir(tmp_path)


def test_reads_a_llama(tmp_path: Path) -> None:
    assert read(tmp_path) == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        context_length=512,
        tie_word_embeddings=True,
        eos_token_ids=frozenset({2}),
    )


def test_defaults_are_those_of_the_format(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        num_key_value_heads="absent",
        tie_word_embeddings="absent",
        rope_theta="absent",
        eos_token_id="absent",
        head_dim=32,
    )
    assert config.n_kv_heads == 4
    assert config.head_dim == 32
    assert config.tie_word_embeddings is False
    assert config.rope_theta == 10_000.0
    assert config.eos_token_ids == frozenset()


def test_rope_parameters_win_over_rope_theta(tmp_path: Path) -> None:
    parameters = {"rope_type": "default", "rope_theta": 5000.0}
    assert read(tmp_path, rope_parameters=parameters).rope_theta == 5000.0


def test_the_generation_config_names_the_end_tokens(tmp_path: Path) -> None:
    config = read(tmp_path, generation={"eos_token_id": [3, 4]})
    assert config.eos_token_ids == {3, 4}
    assert read(tmp_path, generation={}).eos_token_ids == {2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1.0, "factor": 8.0}),
        ("rope_parameters", {"rope_type": "default"}),
        ("sliding_window", 128),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "x.Y"}),
        ("architectures", []),
        ("architectures", "LlamaForCausalLM"),
        ("vocab_size", 0),
        ("vocab_size", True),
        ("vocab_size", "100"),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("rms_norm_eps", -1e-5),
        ("rope_theta", "10000"),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", 100),
        ("eos_token_id", "</s>"),
    ],
)
def test_refuses_by_name(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ModelError, match=name):
        read(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"[]", "is not a JSON object"), (b" " * 2**20 + b"{}", "larger than")],
)
def test_refuses_what_is_not_a_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dir(tmp_path)


def test_refuses_a_directory_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        ModelConfig.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of auto, bfloat16, float32"),
        ({"block_size": 0}, "block_size must be a positive integer, not 0"),
        ({"max_waiting": -1}, "max_waiting must be a positive integer"),
        ({"n_threads": 0}, "n_threads must be a positive integer"),
        ({"kv_cache_tokens": 15}, "at least one block"),
        ({"max_batched_tokens": 63}, "must be at least max_sequences"),
    ],
)
def test_refuses_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EngineConfig(model_dir=Path("m"), **settings)


def test_the_context_is_bounded_by_model_setting_and_pool() -> None:
    config = EngineConfig(model_dir=Path("m"), kv_cache_tokens=1000)
    assert config.n_blocks == 62
    assert config.effective_max_model_len(500) == 500
    assert config.effective_max_model_len(5000) == 992
    limited = EngineConfig(model_dir=Path("m"), max_model_len=300)
    assert limited.effective_max_model_len(500) == 300
    with pytest.raises(ModelError, match="beyond the model's context of 200"):
        limited.effective_max_model_len(200)
