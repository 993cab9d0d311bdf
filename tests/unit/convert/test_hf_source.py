"""Hugging Face directories: what is taken as it is, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import convert
from engine_service.models.manifest import verify_manifest
from tests.unit.convert.builders import (
    TOKENIZER,
    VOCAB,
    bfloat16,
    hugging_face_config,
    hugging_face_dir,
    read_safetensors,
    safetensors,
    weights,
)

ATTENTION = "model.layers.0.self_attn"


def converted(source: Path) -> Path:
    output = source.parent / "out"
    convert(source, output, report=lambda event: None)
    return output


def refusal(source: Path) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        converted(source)
    assert not (source.parent / "out").exists()
    return caught.value


def test_a_directory_is_converted(tmp_path: Path) -> None:
    source = hugging_face_dir(tmp_path / "tiny")
    (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    (source / "modeling_tiny.py").write_text("raise SystemExit")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    output = converted(source)
    manifest = verify_manifest(output)
    assert (manifest.license, manifest.dtype, manifest.source.name) == (
        "apache-2.0",
        "float32",
        "tiny",
    )
    assert sorted(manifest.files) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (output / "chat_template.jinja").read_text() == "{{ messages }}"
    config = json.loads((output / "config.json").read_text())
    assert config == {
        **{k: v for k, v in hugging_face_config().items() if k != "torch_dtype"},
        "dtype": "float32",
    }
    assert json.loads((output / "generation_config.json").read_text()) == {"eos_token_id": 2}
    stored = read_safetensors(output / "model.safetensors")
    for name, values in weights().items():
        assert stored[name][0] == "F32"
        assert np.array_equal(stored[name][1], values)


def test_bfloat16_stays_and_float16_is_widened(tmp_path: Path) -> None:
    bits = {name: bfloat16(values) for name, values in weights().items()}
    halves = {name: values.astype("<f2") for name, values in weights().items()}
    mixed = {**bits, "model.norm.weight": weights()["model.norm.weight"]}
    for case, tensors, expected in (
        ("bf16", bits, {name: ("BF16", values) for name, values in bits.items()}),
        ("f16", halves, {name: ("F32", v.astype("<f4")) for name, v in halves.items()}),
        ("mixed", mixed, {name: ("F32", values) for name, values in weights().items()}),
    ):
        output = converted(hugging_face_dir(tmp_path / case / "source", tensors=tensors))
        stored = read_safetensors(output / "model.safetensors")
        assert set(stored) == set(expected)
        for name, (dtype, values) in expected.items():
            assert stored[name][0] == dtype
            assert np.array_equal(stored[name][1], values)


def test_shards_become_one_file_and_old_constants_are_dropped(tmp_path: Path) -> None:
    tensors = weights()
    first = dict(list(tensors.items())[:4])
    second: dict[str, Any] = {k: v for k, v in tensors.items() if k not in first}
    second["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, dtype="<f4")
    source = hugging_face_dir(tmp_path / "tiny", tensors=first)
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    (source / "model-00002-of-00002.safetensors").write_bytes(safetensors(second))
    stored = read_safetensors(converted(source) / "model.safetensors")
    assert set(stored) == set(tensors)


def test_a_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    tensors = weights()
    equal = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    output = converted(hugging_face_dir(tmp_path / "equal" / "source", tensors=equal))
    assert "lm_head.weight" not in read_safetensors(output / "model.safetensors")
    other = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    error = refusal(hugging_face_dir(tmp_path / "other" / "source", tensors=other))
    assert error.field == "lm_head.weight"


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map", "bring their own code"),
        ({"trust_remote_code": True}, "trust_remote_code", "bring their own code"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures", "MambaForCausalLM"),
        ({"architectures": None}, "architectures", "is None"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "not supported"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "config.json", "longrope"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "config.json", "rope_scaling: factor must be"),
        (
            {"architectures": ["Qwen2ForCausalLM"]},
            "model.layers.0.self_attn.q_proj.bias",
            "is missing",
        ),
        ({"attention_bias": True}, "config.json", "attention_bias=True"),
        ({"hidden_act": "gelu"}, "config.json", "hidden_act='gelu'"),
        ({"hidden_size": "32"}, "hidden_size", "is '32'"),
        ({"hidden_size": 1 << 40}, "hidden_size", "from 1 to"),
        ({"num_attention_heads": 0}, "num_attention_heads", "is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers", "is True"),
        ({"num_hidden_layers": 1e3}, "num_hidden_layers", "is 1000.0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "no multiple"),
        ({"vocab_size": 300}, "model.embed_tokens.weight", "(300, 32) is expected"),
        ({"tie_word_embeddings": False}, "lm_head.weight", "is missing"),
        ({"eos_token_id": VOCAB}, "config.json", "eos_token_id"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], field: str, says: str
) -> None:
    config = hugging_face_config(**changes)
    error = refusal(hugging_face_dir(tmp_path / "tiny", config=config))
    assert error.field == field
    assert says in str(error)


def _many_tokens() -> str:
    model = {**TOKENIZER["model"], "vocab": {**TOKENIZER["model"]["vocab"], "extra": VOCAB}}
    return json.dumps({**TOKENIZER, "model": model})


@pytest.mark.parametrize(
    ("name", "content", "field", "says"),
    [
        ("pytorch_model.bin", "x", "pytorch_model.bin", "pickled checkpoint"),
        ("model.pt", "x", "model.pt", "pickled checkpoint"),
        ("model.PTH", "x", "model.PTH", "pickled checkpoint"),
        ("last.ckpt", "x", "last.ckpt", "pickled checkpoint"),
        ("data.pkl", "x", "data.pkl", "pickled checkpoint"),
        ("config.json", "{", "config.json", "not valid JSON"),
        ("config.json", "[]", "config.json", "not a JSON object"),
        ("config.json", "[" * 100_000, "config.json", "not valid JSON"),
        ("config.json", " " * (1 << 20) + "{}", "config.json", "at most 1048576"),
        ("config.json", None, "config.json", "is missing"),
        ("tokenizer.json", None, "tokenizer.json", "is missing"),
        ("tokenizer.json", "{}", "tokenizer.json", "not valid"),
        ("tokenizer.json", _many_tokens(), "tokenizer.json", f"token id {VOCAB}"),
        ("tokenizer_config.json", None, "tokenizer_config.json", "is missing"),
        ("tokenizer_config.json", '{"auto_map": {"a": "b"}}', "auto_map", "their own code"),
        ("generation_config.json", "[]", "generation_config.json", "not a JSON object"),
        ("generation_config.json", '{"eos_token_id": -1}', "config.json", "eos_token_id"),
        ("model.safetensors", None, "*.safetensors", "no safetensors file"),
        ("model.safetensors", "", "model.safetensors", "empty"),
        ("model.safetensors", "x" * 99, "model.safetensors", "does not fit"),
    ],
)
def test_a_spoilt_file_is_refused_by_name(
    tmp_path: Path, name: str, content: str | None, field: str, says: str
) -> None:
    source = hugging_face_dir(tmp_path / "tiny")
    if content is None:
        (source / name).unlink()
    else:
        (source / name).write_text(content)
    error = refusal(source)
    assert error.field == field
    assert says in str(error)


def test_deep_and_odd_json_is_carried_or_refused(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    text = json.dumps(hugging_face_config(deep=deep))
    source = hugging_face_dir(tmp_path / "deep" / "source")
    (source / "config.json").write_text(text)
    try:
        converted(source)
    except ConversionError as error:
        assert "nested too deeply" in str(error)
    odd = hugging_face_config(_name="\ud800")
    output = converted(hugging_face_dir(tmp_path / "odd" / "source", config=odd))
    assert json.loads((output / "config.json").read_text())["_name"] == "\ud800"


def test_tensors_must_be_exactly_those_of_the_model(tmp_path: Path) -> None:
    missing = {name: v for name, v in weights().items() if name != "model.norm.weight"}
    error = refusal(hugging_face_dir(tmp_path / "missing" / "source", tensors=missing))
    assert error.field == "model.norm.weight"
    more = {**weights(), "model.layers.0.self_attn.q_proj.bias": np.ones(32, dtype="<f4")}
    error = refusal(hugging_face_dir(tmp_path / "more" / "source", tensors=more))
    assert error.field == "model.layers.0.self_attn.q_proj.bias"
    source = hugging_face_dir(tmp_path / "twice" / "source")
    norm = {"model.norm.weight": weights()["model.norm.weight"]}
    (source / "again.safetensors").write_bytes(safetensors(norm))
    error = refusal(source)
    assert error.field == "model.norm.weight"
    assert "appears twice" in str(error)


def test_a_link_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    source = hugging_face_dir(tmp_path / "tiny")
    (source / "special_tokens_map.json").symlink_to(secret)
    assert refusal(source).field == "special_tokens_map.json"
