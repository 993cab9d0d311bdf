"""An engine that attends through a library gives the tokens of one that does not: over the pool's
own views, through decodes, chunks of prompts, prefixes and preemption. The kernels are torch's; the
libraries are doubles of their functions (``tests/attention_libraries.py``)."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine_service.__main__ import parse_options
from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from engine_service.protocol import SamplingParams
from engine_service.runner.device_runner import DeviceRunner
from tests.attention_libraries import (
    Library,
    flash_attention_3,
    flash_attention_4,
    flashinfer,
    install,
)
from tests.integration.engine.backend import make_backend, run_answers, tokens

Maker = Callable[[Library], dict[str, ModuleType]]
CASES = [
    pytest.param(flash_attention_3, "flash-attn", "flash-attn 3", id="flash-attn 3"),
    pytest.param(flash_attention_4, "flash-attn", "flash-attn 4", id="flash-attn 4"),
    pytest.param(flashinfer, "flashinfer", "flashinfer", id="flashinfer"),
]


def on_device(model_dir: Path, **settings: Any) -> NativeBackend:
    wanted = {"device": "cpu", "kernels": "torch", "dtype": "bfloat16", "prefill_slowdown": None}
    return make_backend(model_dir, **wanted | settings)


def crowd() -> list[EngineRequest]:
    """More rows than the kernels for few take, of lengths around a block's, two with a start in
    common; one of them draws."""
    shared = range(100, 140)
    prompts = [range(1, n) for n in (2, 16, 17, 34, 60)]
    prompts += [[*shared, *range(1, n)] for n in (2, 20)]  # type: ignore[list-item]
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(
                temperature=0.9 if key == 3 else 0.0, seed=key, ignore_eos=True
            ),
            max_new_tokens=20,
        )
        for key, prompt in enumerate(prompts)
    ]


def all_tokens(backend: NativeBackend) -> dict[tuple[int, int], list[int]]:
    found = run_answers(backend, *crowd())
    assert all(output.error is None for outputs in found.values() for output in outputs)
    return {key: tokens(outputs) for key, outputs in found.items()}


@pytest.mark.parametrize(("maker", "wanted", "name"), CASES)
def test_tokens_are_the_same_through_it(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, maker: Maker, wanted: Any, name: str
) -> None:
    (library,) = install(monkeypatch, maker)
    for limits in ({}, {"kv_cache_tokens": 176, "max_batched_tokens": 13, "max_sequences": 8}):
        # In bfloat16 a sum depends on how a step is cut: both engines cut them alike.
        plain = on_device(model_dir, **limits)
        expected = [all_tokens(plain) for _ in range(2)]
        backend = on_device(model_dir, attention=wanted, **limits)
        assert backend.info.kernels == f"torch with {name} decode and {name} prefill"
        library.caches.clear()
        before = (library.n_decodes, library.n_prompts)
        # The second time finds what the first left in the prefix cache.
        assert [all_tokens(backend) for _ in range(2)] == expected
        assert library.n_decodes > before[0]
        assert library.n_prompts > before[1]
        # Nothing is copied for it.
        runner = backend._runner
        assert isinstance(runner, DeviceRunner)
        assert runner._model.pool is not None
        pool = runner._model.pool.tensor.untyped_storage().data_ptr()
        assert {cache.untyped_storage().data_ptr() for cache in library.caches} == {pool}
    assert backend.stats().n_preemptions > 0
    assert backend.stats().n_cached_tokens > 0


def test_a_library_that_is_wrong_would_show(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library,) = install(monkeypatch, flash_attention_3)
    expected = all_tokens(on_device(model_dir))
    backend = on_device(model_dir, attention="flash-attn")
    library.skew = 1.5
    assert all_tokens(backend) != expected


def test_the_oracle_is_not_measured_against_others(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library,) = install(monkeypatch, flash_attention_3)
    assert on_device(model_dir).info.kernels == "torch"
    assert (library.n_decodes, library.n_prompts) == (0, 0)


def test_an_engine_that_lacks_what_is_asked_for_does_not_start(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"attention flashinfer cannot be had: .*not installed"):
        on_device(model_dir, attention="flashinfer")
    with pytest.raises(ModelError, match="attention flashinfer is for a GPU; this engine"):
        make_backend(model_dir, attention="flashinfer")


def test_it_is_an_option_of_the_command_line(model_dir: Path) -> None:
    words = ["--model", str(model_dir), "--socket", "s", "--epoch", "1"]
    assert parse_options(words).engine.attention == "auto"
    assert parse_options([*words, "--attention", "flash-attn"]).engine.attention == "flash-attn"
    with pytest.raises(ModelError, match="--attention: invalid choice: 'flash-attn-2'"):
        parse_options([*words, "--attention", "flash-attn-2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attention": "xformers"},
            "attention must be one of auto, triton, flash-attn, flashinfer",
        ),
        ({"attention": "triton", "kernels": "torch"}, "attention triton is of the triton kernels"),
        (
            {"attention": "flash-attn", "kernels": "compiled"},
            "attention flash-attn is for a GPU; kernels compiled are the processor's",
        ),
        ({"attention": "triton", "kernels": "reference"}, "kernels reference are the processor's"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EngineConfig(model_dir=Path("m"), **settings)
