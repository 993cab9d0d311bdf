"""From a GGUF model to a model directory: weights, configuration, tokenizer, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import convert
from tests.unit.convert.builders import (
    BF16,
    F16,
    F32,
    TEMPLATE,
    TOKENS,
    VOCAB,
    Tensor,
    gguf,
    llama_gguf,
    llama_metadata,
    llama_tensors,
    read_safetensors,
    weights,
)


def converted(tmp_path: Path, data: bytes) -> Path:
    source, output = tmp_path / "model.gguf", tmp_path / "out"
    source.write_bytes(data)
    convert(source, output, report=lambda event: None)
    return output


def refusal(tmp_path: Path, data: bytes) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        converted(tmp_path, data)
    assert not (tmp_path / "out").exists()
    return caught.value


@pytest.mark.parametrize(("kind", "dtype"), [(F32, "F32"), (F16, "F32"), (BF16, "BF16")])
def test_weights_come_out_as_they_were_before_llama_cpp(
    tmp_path: Path, kind: int, dtype: str
) -> None:
    output = converted(tmp_path, llama_gguf(kind=kind))
    stored = read_safetensors(output / "model.safetensors")
    expected = weights()
    assert set(stored) == set(expected)
    for name, values in expected.items():
        if kind == F16 and values.ndim == 2:
            values = values.astype(np.float16).astype(np.float32)
        stored_dtype, stored_values = stored[name]
        if dtype == "BF16":
            stored_values = (stored_values.astype(np.uint32) << 16).view(np.float32)
        assert stored_dtype == dtype
        assert np.array_equal(stored_values, values), name


def test_bfloat16_is_kept_only_where_nothing_is_lost(tmp_path: Path) -> None:
    tensors = llama_tensors(kind=BF16)
    fine = np.full(32, 1 + 2**-20, dtype="<f4").tobytes()
    tensors[-1] = Tensor("output_norm.weight", (32,), F32, fine)
    output = converted(tmp_path, gguf(metadata=llama_metadata(), tensors=tensors))
    stored_dtype, values = read_safetensors(output / "model.safetensors")["model.norm.weight"]
    assert stored_dtype == "F32"
    assert (values == np.float32(1 + 2**-20)).all()


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    output = converted(tmp_path, gguf(metadata=llama_metadata(), tensors=llama_tensors(tied=False)))
    assert json.loads((output / "config.json").read_text())["tie_word_embeddings"] is False
    _, head = read_safetensors(output / "model.safetensors")["lm_head.weight"]
    assert np.array_equal(head, weights(tied=False)["lm_head.weight"])


def test_the_configuration_says_what_the_metadata_said(tmp_path: Path) -> None:
    output = converted(tmp_path, llama_gguf())
    assert json.loads((output / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert json.loads((output / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert (output / "chat_template.jinja").read_text() == TEMPLATE


def test_a_separate_end_of_turn_token_ends_too(tmp_path: Path) -> None:
    output = converted(tmp_path, llama_gguf({"tokenizer.ggml.eot_token_id": 0}))
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_smollm_splits_every_digit_and_gpt2_does_not(tmp_path: Path) -> None:
    for pre, expected in (("smollm", ["1", "2"]), ("gpt-2", ["12"])):
        directory = tmp_path / pre
        directory.mkdir()
        output = converted(directory, llama_gguf({"tokenizer.ggml.pre": pre}))
        tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
        assert tokenizer.encode("12").tokens == expected
        assert tokenizer.encode("the").tokens == ["the"]


def test_special_tokens_are_one_token_each_and_left_out_of_text(tmp_path: Path) -> None:
    output = converted(tmp_path, llama_gguf())
    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    ids = tokenizer.encode("<|im_start|>the<|im_end|>").ids
    assert ids == [1, TOKENS.index("the"), 2]
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>the<|im_end|>"


def test_a_beginning_token_is_added_where_the_model_wants_one(tmp_path: Path) -> None:
    output = converted(tmp_path, llama_gguf({"tokenizer.ggml.add_bos_token": True}))
    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    assert tokenizer.encode("the").ids == [1, TOKENS.index("the")]
    assert tokenizer.encode("the", add_special_tokens=False).ids == [TOKENS.index("the")]


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"general.architecture": "mamba"}, "general.architecture", "'mamba' is not supported"),
        ({"general.architecture": None}, "general.architecture", "missing"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type", "'yarn' is not supp"),
        ({"llama.expert_count": 8}, "llama.expert_count", "experts are not supported"),
        ({"llama.expert_count": [8, 8]}, "llama.expert_count", "not one whole number"),
        ({"llama.embedding_length": None}, "llama.embedding_length", "missing"),
        (
            {"llama.feed_forward_length": 96},
            "model.layers.0.mlp.gate_proj.weight",
            "has shape (64, 32); (96, 32) is expected",
        ),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count", "is 0"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads", "no multiple"),
        ({"llama.attention.head_count_kv": 0}, "num_key_value_heads", "is 0"),
        ({"llama.attention.head_count_kv": [2]}, "llama.attention.head_count_kv", "not one"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count", "head size 8"),
        ({"llama.block_count": 2}, "model.layers.1.input_layernorm.weight", "is missing"),
        ({"llama.block_count": 1 << 31}, "num_hidden_layers", "from 1 to 1024"),
        ({"llama.context_length": 0}, "max_position_embeddings", "is 0"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base", "not a positive"),
        (
            {"llama.attention.layer_norm_rms_epsilon": None},
            "llama.attention.layer_norm_rms_epsilon",
            "missing",
        ),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model", "'llama' is not supported"),
        ({"tokenizer.ggml.model": ["gpt2"]}, "tokenizer.ggml.model", "not a text"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre", "'llama-bpe' is not supp"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens", "missing"),
        ({"tokenizer.ggml.tokens": ["a"] * VOCAB}, "tokenizer.ggml.tokens", "appears twice"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], ""]}, "tokenizer.ggml.merges", "'th e'"),
        ({"tokenizer.ggml.tokens": ["", *TOKENS[1:]]}, "tokenizer.ggml.tokens", "is empty"),
        ({"tokenizer.ggml.merges": ["1 x"]}, "tokenizer.ggml.merges", "'1 x' uses tokens"),
        ({"tokenizer.ggml.merges": ["12"]}, "tokenizer.ggml.merges", "'12' uses tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type", "1 token types for 262"),
        ({"tokenizer.ggml.eos_token_id": None}, "tokenizer.ggml.eos_token_id", "does not say"),
        ({"tokenizer.ggml.eos_token_id": VOCAB}, "tokenizer.ggml.eos_token_id", "no id of the"),
        ({"tokenizer.ggml.add_eos_token": True}, "tokenizer.ggml.add_eos_token", "appends"),
        ({"tokenizer.ggml.add_bos_token": 1}, "tokenizer.ggml.add_bos_token", "neither true"),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template", "not a text"),
    ],
)
def test_what_the_engine_cannot_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], field: str, says: str
) -> None:
    error = refusal(tmp_path, llama_gguf(changes))
    assert error.field == field
    assert says in str(error)


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    bias = Tensor("blk.0.attn_q.bias", (32,), F32, bytes(128))
    error = refusal(tmp_path, gguf(metadata=llama_metadata(), tensors=[*llama_tensors(), bias]))
    assert error.field == "blk.0.attn_q.bias"
    other = Tensor("blk.7.attn_norm.weight", (32,), F32, bytes(128))
    error = refusal(tmp_path, gguf(metadata=llama_metadata(), tensors=[*llama_tensors(), other]))
    assert error.field == "model.layers.7.input_layernorm.weight"


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    twin = Tensor("blk.00.attn_norm.weight", (32,), F32, bytes(128))
    error = refusal(tmp_path, gguf(metadata=llama_metadata(), tensors=[*llama_tensors(), twin]))
    assert error.field == "model.layers.00.input_layernorm.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [F32, BF16])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, kind: int, value: float) -> None:
    tensors = llama_tensors(kind=kind)
    bad = np.ones(32, dtype="<f4")
    bad[7] = value
    tensors[-1] = Tensor("output_norm.weight", (32,), F32, bad.tobytes())
    error = refusal(tmp_path, gguf(metadata=llama_metadata(), tensors=tensors))
    assert error.field == "model.norm.weight"


VALUES = st.one_of(
    st.integers(0, 2**32 - 1),
    st.floats(width=32),
    st.booleans(),
    st.text(max_size=8),
    st.lists(st.text(max_size=4), max_size=4),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4),
    st.none(),
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(llama_metadata())), VALUES, max_size=3))
def test_any_value_in_any_place_converts_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("any")
    try:
        converted(directory, llama_gguf(changes))
    except ConversionError as error:
        assert len(str(error)) <= 500
        assert sorted(path.name for path in directory.iterdir()) == ["model.gguf"]
