"""On a GPU, a model with weights of eight bits gives the tokens of one whose weights are what those
stand for, and what they leave free becomes KV pool.

In float32 that model is transformers', and every token is the same. In bfloat16 the engine rounds a
weight of int8 times its scale, and what stands between its kernels: there tokens may differ where
the reference's two best logits lie within ``BFLOAT16_TIE``.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.config import DTypeName, EngineConfig, QuantizationName
from engine_service.kernels.quantization import Kind
from tests.models import random_model_dir
from tests.parity import NEAR_TIE, compare, reference_answers, run_backend
from tests.quantized_models import dequantized_dir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

BFLOAT16_TIE = 0.25
MAX_TIES = {"float32": 2.0, "bfloat16": 0.1}  # in all, and of all tokens
N_TOKENS = 24
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 64},
    "qwen2": {"tie_word_embeddings": False, "num_key_value_heads": 1},
}


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TensorFloat-32 has ten bits of a number's 23."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make_prompts() -> list[tuple[int, ...]]:
    """The steps with the long one have more rows than are multiplied out in registers."""
    lengths = (1, 2, 15, 16, 17, 33, 90, 400)
    return [tuple((7 * n + 11 * i) % 320 for i in range(n)) for n in lengths]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_model_of_its_dequantized_weights(
    tmp_path: Path, family: str, dtype: DTypeName, kind: Kind
) -> None:
    model_dir = random_model_dir(tmp_path, family, **FAMILIES[family])
    weights_dtype: torch.dtype = getattr(torch, dtype)
    copy = dequantized_dir(model_dir, tmp_path, kind=kind, dtype=weights_dtype)
    reference = reference_answers(copy, prompts=make_prompts(), n_tokens=N_TOKENS)
    backend = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype=dtype,
            kv_cache_tokens=4096,
            max_sequences=16,
            max_batched_tokens=512,
            quantization=kind,
        )
    )
    is_narrow = dtype == "bfloat16"
    tie = BFLOAT16_TIE if is_narrow else NEAR_TIE
    report = compare(reference, run_backend(backend), near_tie=tie)
    print(backend.info.kernels, backend.info.dtype, kind, report)
    assert report.differences == []
    assert report.n_near_ties <= MAX_TIES[dtype] * (report.n_tokens if is_narrow else 1)


def test_what_the_weights_leave_is_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU of 4 GiB that nobody else uses, as other tests do this one."""
    size = 4 * 2**30
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda: (size - torch.cuda.memory_reserved(), size)
    )
    n_layers, hidden, inner, kv_size = 8, 1024, 4096, 512
    model_dir = random_model_dir(
        tmp_path,
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=n_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    n_numbers = n_layers * hidden * (2 * hidden + 2 * kv_size + 3 * inner)
    kinds: tuple[QuantizationName, ...] = ("none", "int8", "fp8")
    pools = {kind: pool_tokens(model_dir, kind) for kind in kinds}
    print(pools)
    # Memory is reserved in pieces; some of those that quantising took may be kept for a rest.
    for pool, freed in ((pools["int8"], 2 - 9 / 8), (pools["fp8"], 2 - 1)):
        more = (pool - pools["none"]) * n_layers * 2 * kv_size * 2
        assert 0.4 * n_numbers * freed <= more <= 1.3 * n_numbers * freed


def pool_tokens(model_dir: Path, kind: QuantizationName) -> int:
    """Return how many tokens an engine has room for that is told nothing of it, and end it."""
    backend = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="bfloat16",
            max_sequences=4,
            max_batched_tokens=64,
            quantization=kind,
        )
    )
    n_tokens = backend.stats().n_blocks_total * 16
    del backend
    gc.collect()
    torch.cuda.empty_cache()
    return n_tokens
