"""The embedding model's wheel: what is taken from it, and every module that is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import convert
from engine_service.encoder_config import EncoderConfig
from engine_service.errors import ModelError
from engine_service.models.manifest import verify_manifest
from tests.models import minilm_dir, minilm_wheel, random_bert_dir

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]
POOLING = {
    "word_embedding_dimension": 48,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny model as sentence-transformers would save it, which a test may then spoil."""
    directory = random_bert_dir(tmp_path)
    for name in ("pooling.json", "manifest.json"):
        (directory / name).unlink()
    write(directory / "modules.json", MODULES)
    write(directory / "1_Pooling" / "config.json", POOLING)
    write(directory / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    return directory


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change(path: Path, **values: object) -> None:
    write(path, {**json.loads(path.read_text()), **values})


def converted(source: Path) -> Path:
    output = source.parent / "imported"
    convert(source, output, report=lambda _: None)
    return output


def test_the_wheel_is_imported() -> None:
    manifest = verify_manifest(minilm_dir())
    assert manifest.architecture == "BertModel"
    assert (manifest.dtype, manifest.license) == ("float32", "apache-2.0")
    assert (manifest.context_length, manifest.vocab_size) == (256, 30522)
    # The pooler's 147,840 weights are left out.
    assert manifest.n_parameters == 22_713_216 - 147_840
    assert manifest.source.name == minilm_wheel().name
    config = EncoderConfig.from_dir(minilm_dir())
    assert (config.pooling, config.is_normalized, config.max_input_tokens) == ("mean", True, 256)


def test_a_directory_is_imported_with_what_its_modules_say(source: Path) -> None:
    change(
        source / "1_Pooling" / "config.json",
        pooling_mode_cls_token=True,
        pooling_mode_mean_tokens=False,
    )
    write(source / "modules.json", MODULES[:2])
    (source / "sentence_bert_config.json").unlink()
    config = EncoderConfig.from_dir(converted(source))
    assert (config.pooling, config.is_normalized, config.max_input_tokens) == ("cls", False, 64)
    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (source, source.parent / "imported")
    )
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_the_identity_of_a_directory_covers_its_modules(source: Path) -> None:
    identities = []
    for words in (False, True):
        change(source / "1_Pooling" / "config.json", include_prompt=words)
        output = converted(source)
        identities.append(verify_manifest(output).source.sha256)
        shutil.rmtree(output)
    assert identities[0] != identities[1]


SPOILED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no modules": (lambda d: (d / "modules.json").unlink(), "modules.json", "is missing"),
    "not a list": (lambda d: write(d / "modules.json", {}), "modules.json", "is not valid"),
    "another module": (
        lambda d: write(d / "modules.json", [*MODULES[:2], DENSE]),
        "modules.json",
        "models.Dense; supported are Transformer, then Pooling",
    ),
    "code of its own": (
        lambda d: write(d / "modules.json", [{**MODULES[0], "type": "mine.Transformer"}]),
        "modules.json",
        "mine.Transformer",
    ),
    "no pooling": (
        lambda d: (d / "1_Pooling" / "config.json").unlink(),
        "1_Pooling/config.json",
        "is missing",
    ),
    "outside": (
        lambda d: write(d / "modules.json", [MODULES[0], {**MODULES[1], "path": "../1_Pooling"}]),
        "../1_Pooling/config.json",
        "is missing",
    ),
    "another pooling": (
        lambda d: change(
            d / "1_Pooling" / "config.json",
            pooling_mode_max_tokens=True,
            pooling_mode_mean_tokens=False,
        ),
        "pooling_mode_max_tokens",
        "pools by pooling_mode_max_tokens",
    ),
    "two poolings": (
        lambda d: change(d / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        "pooling_mode_cls_token",
        "exactly one",
    ),
    "another size": (
        lambda d: change(d / "1_Pooling" / "config.json", word_embedding_dimension=49),
        "word_embedding_dimension",
        "hidden_size 48",
    ),
    "too many tokens": (
        lambda d: change(d / "sentence_bert_config.json", max_seq_length=65),
        "max_seq_length",
        "1 to 64",
    ),
    "lower case": (
        lambda d: change(d / "sentence_bert_config.json", do_lower_case=True),
        "do_lower_case",
        "the tokenizer's",
    ),
    "a prompt": (
        lambda d: write(d / "config_sentence_transformers.json", {"default_prompt_name": "query"}),
        "default_prompt_name",
        "prompts are not supported",
    ),
    "another activation": (
        lambda d: change(d / "config.json", hidden_act="relu"),
        "config.json",
        "hidden_act='relu' is not supported",
    ),
    "relative positions": (
        lambda d: change(d / "config.json", position_embedding_type="relative_key"),
        "config.json",
        "position_embedding_type",
    ),
    "a decoder": (
        lambda d: change(d / "config.json", is_decoder=True),
        "config.json",
        "is_decoder",
    ),
    "another head": (
        lambda d: change(d / "config.json", architectures=["BertForMaskedLM"]),
        "architectures",
        "BertForMaskedLM",
    ),
    "no number": (
        lambda d: change(d / "config.json", type_vocab_size="2"),
        "type_vocab_size",
        "type_vocab_size is '2'",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_not_supported_is_refused_by_name(source: Path, how: str) -> None:
    spoil, field, message = SPOILED[how]
    spoil(source)
    with pytest.raises(ConversionError, match=message) as caught:
        converted(source)
    assert caught.value.field == field
    assert not (source.parent / "imported").exists()


def test_a_tensor_that_is_missing_or_unknown_is_refused_by_name(source: Path) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    bias = tensors.pop("encoder.layer.1.output.dense.bias")
    save_file(tensors, path)
    with pytest.raises(ConversionError, match="is missing") as caught:
        converted(source)
    assert caught.value.field == "encoder.layer.1.output.dense.bias"
    tensors |= {"encoder.layer.1.output.dense.bias": bias, "classifier.bias": bias}
    save_file(tensors, path)
    with pytest.raises(ConversionError, match="no part of a supported BertModel") as caught:
        converted(source)
    assert caught.value.field == "classifier.bias"


@pytest.mark.parametrize(
    ("field", "value"),
    [("pooling", "max"), ("normalize", "yes"), ("max_input_tokens", 65), ("max_input_tokens", 0)],
)
def test_the_engine_reads_its_own_file_as_strictly(
    tmp_path: Path, field: str, value: object
) -> None:
    directory = random_bert_dir(tmp_path)
    change(directory / "pooling.json", **{field: value})
    with pytest.raises(ModelError, match=field):
        EncoderConfig.from_dir(directory)
