"""Which kernels an engine runs: what was asked for, or it says by name why not."""

import logging
from pathlib import Path
from typing import Any

import pytest

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from engine_service.kernels.cpu import library
from tests.compiled import compiled_library


def make_backend(model_dir: Path, **settings: Any) -> NativeBackend:
    settings = {"kv_cache_tokens": 512, "max_model_len": 64, **settings}
    return NativeBackend(EngineConfig(model_dir=model_dir, **settings))


def test_auto_takes_the_best_that_is_built(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = compiled_library().instruction_sets[0]
    assert make_backend(model_dir).info.kernels == f"compiled {best}"
    assert make_backend(model_dir, kernels="reference").info.kernels == "reference"
    assert caplog.records == []


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_computes_in_what_the_kernels_gain_from(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    compiled_library()
    monkeypatch.setattr(
        "engine_service.runner.kernel_choice.multiplies_bfloat16", lambda: multiplies
    )
    of_reference = "bfloat16" if multiplies else "float32"
    assert make_backend(model_dir).info.dtype == "bfloat16"
    assert make_backend(model_dir, kernels="reference").info.dtype == of_reference
    assert make_backend(model_dir, dtype="float32").info.dtype == "float32"


def test_an_instruction_set_can_be_named(model_dir: Path) -> None:
    for name in compiled_library().instruction_sets:
        backend = make_backend(model_dir, kernels="compiled", instruction_set=name)
        assert backend.info.kernels == f"compiled {name}"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"block_size": 8}, "block_size 8 is no multiple of 16"),
        ({"instruction_set": "MMX"}, "instruction_set MMX is not one that this processor has: "),
    ],
)
def test_what_cannot_be_compiled_is_refused_or_said(
    model_dir: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str
) -> None:
    compiled_library()
    with pytest.raises(ModelError, match=f"the compiled kernels cannot run: {reason}"):
        make_backend(model_dir, kernels="compiled", **settings)
    with caplog.at_level(logging.WARNING):
        assert make_backend(model_dir, **settings).info.kernels == "reference"
    (warning,) = caplog.messages
    assert warning.startswith(f"running the slower reference kernels: {reason}")


def test_a_library_that_is_not_there_is_named(
    model_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "none.so")
    monkeypatch.setattr("engine_service.runner.compiled.obstacle", lambda: "there is no compiler")
    with pytest.raises(ModelError, match="the compiled kernels cannot run: there is no compiler"):
        make_backend(model_dir, kernels="compiled")
    with caplog.at_level(logging.WARNING):
        assert make_backend(model_dir).info.kernels == "reference"
    assert caplog.messages == ["running the slower reference kernels: there is no compiler"]


@pytest.mark.parametrize("kv_cache_tokens", [2**36, 2**64])
def test_a_pool_beyond_all_memory_is_a_wrong_configuration(
    model_dir: Path, kv_cache_tokens: int
) -> None:
    compiled_library()
    with pytest.raises(ModelError, match="kv_cache_tokens"):
        make_backend(model_dir, kernels="compiled", kv_cache_tokens=kv_cache_tokens)


def test_int8_is_named(model_dir: Path) -> None:
    compiled_library()
    plain, quantized = make_backend(model_dir), make_backend(model_dir, quantization="int8")
    assert (plain.info.quantization, quantized.info.quantization) == ("none", "int8")
    assert quantized.info.kernels == plain.info.kernels


@pytest.mark.parametrize("setting", ["quantization", "kv_cache_dtype"])
def test_a_processor_refuses_fp8(model_dir: Path, setting: str) -> None:
    with pytest.raises(ModelError, match=f"{setting} fp8 needs a GPU"):
        make_backend(model_dir, **{setting: "fp8"})


def test_int8_never_becomes_the_reference(model_dir: Path) -> None:
    compiled_library()
    with pytest.raises(ModelError, match="block_size 8 is no multiple of 16"):
        make_backend(model_dir, quantization="int8", block_size=8)
    with pytest.raises(ModelError, match="quantization int8 is not of the reference kernels"):
        EngineConfig(model_dir=model_dir, quantization="int8", kernels="reference")
