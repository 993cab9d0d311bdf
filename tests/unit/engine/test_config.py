"""Settings that cannot work and model options that are not implemented are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.rotary import LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling

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


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, "low_freq_factor": 1}
LLAMA3 |= {"high_freq_factor": 4, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
MISTRAL = {"architectures": ["MistralForCausalLM"]}


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
        rotary=RotaryConfig(theta=100_000.0),
        context_length=512,
        sliding_window=None,
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
    assert config.rotary.theta == 10_000.0
    assert config.eos_token_ids == frozenset()


def test_rope_parameters_win_over_rope_theta(tmp_path: Path) -> None:
    parameters = {"rope_type": "default", "rope_theta": 5000.0}
    assert read(tmp_path, rope_parameters=parameters).rotary.theta == 5000.0


def test_reads_the_variants_of_rotary_scaling(tmp_path: Path) -> None:
    linear = {"type": "linear", "factor": 2}
    assert read(tmp_path, rope_scaling=linear).rotary == RotaryConfig(
        theta=100_000.0, scaling=LinearScaling(factor=2.0)
    )
    assert read(tmp_path, rope_scaling=linear, rope_theta="absent").rotary.theta == 10_000.0
    assert read(tmp_path, rope_parameters=LLAMA3).rotary == RotaryConfig(
        theta=5e5,
        scaling=Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
        ),
    )
    assert read(tmp_path, rope_parameters=YARN).rotary == RotaryConfig(
        theta=1e6,
        scaling=YarnScaling(
            factor=4.0,
            attention_factor=1.1386294361119891,
            beta_fast=32.0,
            beta_slow=1.0,
            original_context=512,
            truncate=True,
        ),
    )
    assert read(tmp_path, rope_scaling={}).rotary.scaling is None


def test_two_rotary_descriptions_must_agree(tmp_path: Path) -> None:
    assert read(tmp_path, rope_parameters=YARN, rope_scaling=YARN).rotary.theta == 1e6
    with pytest.raises(ModelError, match="rope_parameters differs"):
        read(tmp_path, rope_parameters=YARN, rope_scaling={**YARN, "factor": 2.0})
    with pytest.raises(ModelError, match="original_max_position_embeddings must be 256"):
        read(tmp_path, rope_parameters=LLAMA3, original_max_position_embeddings=256)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({**MISTRAL, "sliding_window": None}, None),
        ({**MISTRAL, "sliding_window": 64}, 64),
        (MISTRAL, 4096),
        ({**QWEN2, "sliding_window": 64}, None),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 1}, 4096),
        (
            {**QWEN2, "use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
            None,
        ),
        ({**QWEN3, "use_sliding_window": True, "sliding_window": 64}, None),
        (
            {**QWEN3, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
            None,
        ),
        (
            {**QWEN3, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
            64,
        ),
        (
            {
                **QWEN3,
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            64,
        ),
    ],
)
def test_a_sliding_window_is_known_where_a_layer_has_one(
    tmp_path: Path, changes: dict[str, Any], window: int | None
) -> None:
    assert read(tmp_path, **changes).sliding_window == window


def test_defaults_follow_the_family(tmp_path: Path) -> None:
    assert read(tmp_path, **{**QWEN3, "head_dim": "absent"}).head_dim == 128
    assert read(tmp_path, **QWEN2, attention_bias=True).head_dim == 16
    assert read(tmp_path, **QWEN2, num_key_value_heads=None).n_kv_heads == 4
    with pytest.raises(ModelError, match="num_key_value_heads"):
        read(tmp_path, **QWEN2, num_key_value_heads="absent")
    with pytest.raises(ModelError, match="attention_bias"):
        read(tmp_path, **QWEN2, attention_bias=False)
    with pytest.raises(ModelError, match="attention_bias"):
        read(tmp_path, **QWEN3, attention_bias=True)
    with pytest.raises(ModelError, match="layer_types"):
        read(tmp_path, **QWEN3, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ModelError, match="max_window_layers"):
        read(tmp_path, **QWEN3, use_sliding_window=True, max_window_layers=-1)


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
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("factor", {"rope_type": "linear", "rope_theta": 1.0, "factor": 0.5}),
        ("rope_scaling", {"factor": 2.0}),
        ("rope_scaling", 2.0),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1.0, "factor": 8.0}),
        ("low_freq_factor", {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}),
        ("high_freq_factor", {**LLAMA3, "high_freq_factor": 1}),
        ("original_max_position_embeddings", {**LLAMA3, "original_max_position_embeddings": 0}),
        ("mscale", {**LLAMA3, "mscale": 1.0}),
        ("beta_slow", {**YARN, "beta_slow": 64}),
        ("truncate", {**YARN, "truncate": 1}),
        ("factor", {"rope_type": "default", "rope_theta": 1.0, "factor": 8.0}),
        ("partial_rotary_factor", {**YARN, "partial_rotary_factor": 0.5}),
        ("rope_theta", {"rope_type": "default"}),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 128),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "x.Y"}),
        ("architectures", []),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", ["LlamaForSequenceClassification"]),
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
    # A rotary parameter stands in its object; there the absent top-level base does not help it.
    if isinstance(value, dict) and "rope_type" in value:
        changes = {"rope_theta": "absent", "rope_parameters": value}
    else:
        changes = {name: value}
    with pytest.raises(ModelError, match=name):
        read(tmp_path, **changes)


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
        ({"quantization": "int4"}, "quantization must be one of none, int8, fp8, not 'int4'"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype must be one of auto, fp8, not 'int8'"),
        (
            {"quantization": "fp8", "kernels": "reference"},
            "quantization fp8 is not of the reference kernels",
        ),
        ({"block_size": 0}, "block_size must be a positive integer, not 0"),
        ({"max_waiting": -1}, "max_waiting must be a positive integer"),
        ({"n_threads": 0}, "n_threads must be a positive integer"),
        ({"kv_cache_tokens": 15}, "at least one block"),
        ({"max_batched_tokens": 63}, "must be at least max_sequences"),
        ({"host_kv_cache_bytes": -1}, "host_kv_cache_bytes must be 0"),
        (
            {"disk_kv_cache_bytes": 2**20, "kv_cache_dir": Path("d")},
            "disk_kv_cache_bytes needs host_kv_cache_bytes",
        ),
        (
            {"host_kv_cache_bytes": 2**20, "disk_kv_cache_bytes": 2**20},
            "disk_kv_cache_bytes and kv_cache_dir are set together",
        ),
        ({"kv_cache_dir": Path("d")}, "disk_kv_cache_bytes and kv_cache_dir are set together"),
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


def test_no_more_is_served_than_a_sliding_window_shows(caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(model_dir=Path("m"), max_model_len=300)
    assert config.effective_max_model_len(500, sliding_window=300) == 300
    with pytest.raises(ModelError, match=r"max_model_len \(300\) .* sliding_window of 299"):
        config.effective_max_model_len(500, sliding_window=299)
    assert not caplog.messages
    by_default = EngineConfig(model_dir=Path("m"))
    assert by_default.effective_max_model_len(500, sliding_window=299) == 299
    assert "cut to the model's sliding_window of 299 tokens" in caplog.text
    bounded_by_pool = EngineConfig(model_dir=Path("m"), kv_cache_tokens=160)
    assert bounded_by_pool.effective_max_model_len(500, sliding_window=160) == 160
