"""On a GPU, each attention library that is installed agrees with our kernels over the pool, can be
held by a graph, and gives transformers' tokens through an engine. What is missing is skipped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.config import AttentionName, EngineConfig
from engine_service.kernels.libraries.flash_attention import FlashAttention3, FlashAttention4
from engine_service.kernels.libraries.flashinfer import FlashInfer
from engine_service.kernels.paged_attention import AttentionShape, UnfitError
from engine_service.runner.attention_trials import (
    DeviceStopwatch,
    StepLimits,
    Trials,
    difference,
)
from tests.models import random_model_dir
from tests.parity import compare, reference_answers, run_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

LIBRARIES: Any = (FlashAttention3, FlashAttention4, FlashInfer)
BFLOAT16_TIE = 0.25
MAX_TIES = 0.1  # of all tokens


def shape_of(*, n_kv_heads: int, head_dim: int) -> AttentionShape:
    return AttentionShape(
        n_heads=8,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        block_size=16,
        dtype=torch.bfloat16,
        kv_dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )


def made(library: Any, shape: AttentionShape) -> Any:
    try:
        return library(shape)
    except UnfitError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
@pytest.mark.parametrize(("n_kv_heads", "head_dim"), [(8, 64), (2, 128)])
@torch.inference_mode()
def test_agrees_with_ours_and_fits_a_graph(library: Any, n_kv_heads: int, head_dim: int) -> None:
    from engine_service.kernels.triton.kernels import TritonKernels

    shape = shape_of(n_kv_heads=n_kv_heads, head_dim=head_dim)
    theirs = made(library, shape)
    trials = Trials(shape, limits=StepLimits(max_len=4096, max_rows=64, max_tokens=2048))
    for case in trials.checked:
        assert difference(case.run(theirs), case.run(TritonKernels()), rows=case.rows) <= 1.0
    for case in trials.timed("decode"):
        took_s = DeviceStopwatch(shape.device).seconds_of(
            lambda case=case: case.run(theirs), is_replayed=True
        )
        assert 0 < took_s < 1


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
def test_an_engine_gives_transformers_tokens_through_it(tmp_path: Path, library: Any) -> None:
    made(library, shape_of(n_kv_heads=2, head_dim=128))
    wanted: AttentionName = "flashinfer" if library is FlashInfer else "flash-attn"
    model_dir = random_model_dir(tmp_path, "qwen3", head_dim=128)
    prompts = [tuple((7 * n + 11 * i) % 320 for i in range(n)) for n in (1, 15, 16, 17, 90, 200)]
    answers = reference_answers(
        model_dir, prompts=prompts, n_tokens=24, weights_dtype=torch.bfloat16
    )
    engine = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="bfloat16",
            attention=wanted,
            kv_cache_tokens=4096,
        )
    )
    assert engine.info.kernels.startswith("triton with ")
    report = compare(answers, run_backend(engine), near_tie=BFLOAT16_TIE)
    print(engine.info.kernels, report)
    assert report.differences == []
    assert report.n_near_ties <= MAX_TIES * report.n_tokens
