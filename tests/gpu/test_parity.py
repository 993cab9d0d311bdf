"""On a GPU, models of every family give transformers' token ids, however the work is cut.

In float32 every token is the same. In bfloat16 the engine rounds between its kernels; the reference
has the same rounded weights and computes in float32, so that a token may differ only where its two
best logits lie within ``BFLOAT16_TIE``.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.config import DTypeName, EngineConfig
from tests.families import MODELS
from tests.models import random_model_dir
from tests.parity import (
    NEAR_TIE,
    ReferenceAnswer,
    compare,
    reference_answers,
    run_alone,
    run_backend,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

BFLOAT16_TIE = 0.25
MAX_BFLOAT16_TIES = 0.1  # of all tokens
N_TOKENS = 24
# Head sizes that real models have, beside the tiny ones of the families.
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: heads of 64": ("llama", {"head_dim": 64}),
    "llama: heads of 80": ("llama", {"head_dim": 80, "num_key_value_heads": 1}),
    "mistral: heads of 96": ("mistral", {"head_dim": 96, "sliding_window": None}),
    "qwen3: heads of 128": ("qwen3", {"head_dim": 128}),
    "qwen3: heads of 256": ("qwen3", {"head_dim": 256, "num_key_value_heads": 1}),
}
IN_FLOAT32 = MODELS | WIDE
IN_BFLOAT16 = {
    name: IN_FLOAT32[name]
    for name in (
        "llama: llama3 rotary",
        "mistral: heads of 96",
        "qwen2: untied, yarn rotary",
        "qwen3: heads of 128",
        "qwen3: tied, wide heads",
    )
}
CASES = [
    pytest.param("float32", *model, id=f"float32, {name}") for name, model in IN_FLOAT32.items()
] + [
    pytest.param("bfloat16", *model, id=f"bfloat16, {name}") for name, model in IN_BFLOAT16.items()
]
ON_DEVICE: dict[str, Any] = {"device": "cuda"}


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TensorFloat-32 has ten bits of a number's 23."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make_prompts() -> list[tuple[int, ...]]:
    """Of lengths around a block's, three of them behind one start."""
    rng = random.Random(7)
    shared = tuple(rng.randrange(320) for _ in range(40))
    prompts = [tuple(rng.randrange(320) for _ in range(n)) for n in (1, 2, 15, 16, 17, 33, 90)]
    return prompts + [shared + tuple(rng.randrange(320) for _ in range(n)) for n in (1, 8, 30)]


@pytest.mark.parametrize(("dtype", "family", "settings"), CASES)
def test_equals_transformers_alone_batched_preempted_and_cached(
    tmp_path: Path, dtype: DTypeName, family: str, settings: dict[str, Any]
) -> None:
    model_dir = random_model_dir(tmp_path, family, **settings)
    answers = reference_answers(
        model_dir,
        prompts=make_prompts(),
        n_tokens=N_TOKENS,
        weights_dtype=getattr(torch, dtype),
    )
    window = settings.get("sliding_window")

    def engine(**limits: Any) -> NativeBackend:
        return NativeBackend(EngineConfig(model_dir=model_dir, dtype=dtype, **ON_DEVICE, **limits))

    alone = engine(kv_cache_tokens=4096, max_sequences=8, max_model_len=window)
    assert_equals(answers, alone, dtype=dtype, is_alone=True)
    # The second of the prompts with a shared start finds its two full blocks of 16.
    assert alone.stats().n_cached_tokens >= 64
    batched = engine(
        kv_cache_tokens=4096, max_sequences=16, max_batched_tokens=512, max_model_len=window
    )
    assert_equals(answers, batched, dtype=dtype)
    assert batched.stats().n_preemptions == 0
    mixed = engine(kv_cache_tokens=176, max_batched_tokens=13, max_sequences=8)
    for _ in range(2):  # the second time finds what the first left in the prefix cache
        assert_equals(answers, mixed, dtype=dtype)
    stats = mixed.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0
    assert stats.n_blocks_free == stats.n_blocks_total == 11


def assert_equals(
    answers: list[ReferenceAnswer],
    engine: NativeBackend,
    *,
    dtype: DTypeName,
    is_alone: bool = False,
) -> None:
    generate = run_backend(engine)
    is_narrow = dtype == "bfloat16"
    report = compare(
        answers,
        run_alone(generate) if is_alone else generate,
        near_tie=BFLOAT16_TIE if is_narrow else NEAR_TIE,
    )
    print(engine.info.kernels, engine.info.dtype, report)
    assert report.differences == []
    assert report.n_near_ties <= (MAX_BFLOAT16_TIES * report.n_tokens if is_narrow else 2)


def test_a_small_change_of_the_weights_shows(tmp_path: Path) -> None:
    """Or the comparison could not fail."""
    sound = random_model_dir(tmp_path / "sound", "qwen3", head_dim=32)
    changed = random_model_dir(tmp_path / "changed", "qwen3", head_dim=32, rms_norm_eps=1e-2)
    answers = reference_answers(sound, prompts=make_prompts()[-3:], n_tokens=N_TOKENS)
    engine = NativeBackend(
        EngineConfig(model_dir=changed, dtype="float32", kv_cache_tokens=4096, **ON_DEVICE)
    )
    assert compare(answers, run_backend(engine)).differences
