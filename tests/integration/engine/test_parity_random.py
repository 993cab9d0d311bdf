"""Tiny random Llamas give the token ids of transformers, however the scheduler cuts the work."""

import random
from pathlib import Path
from typing import Any

import pytest

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from tests.models import random_llama_dir
from tests.parity import compare, reference_answers, run_alone, run_backend

SHAPES: dict[str, dict[str, Any]] = {
    "tied, grouped heads": {},
    "untied, one head group": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "untied, one kv head, wide heads": {
        "tie_word_embeddings": False,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
    },
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_transformers_alone_mixed_preempted_and_cached(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    model_dir = random_llama_dir(tmp_path, **shape)
    rng = random.Random(7)
    shared = tuple(rng.randrange(320) for _ in range(40))
    prompts = [tuple(rng.randrange(320) for _ in range(n)) for n in (1, 2, 15, 16, 17, 33, 90)]
    prompts += [shared + tuple(rng.randrange(320) for _ in range(n)) for n in (1, 8, 30)]
    answers = reference_answers(model_dir, prompts=prompts, n_tokens=24)

    alone = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32"))
    report = compare(answers, run_alone(run_backend(alone)))
    assert report.differences == []
    # The second of the prompts with a shared start finds its two full blocks of 16.
    assert alone.stats().n_cached_tokens == 64

    mixed = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            dtype="float32",
            kv_cache_tokens=176,
            max_batched_tokens=13,
            max_sequences=8,
        )
    )
    for _ in range(2):
        report = compare(answers, run_backend(mixed))
        print(report, mixed.stats())
        assert report.differences == []
    stats = mixed.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0
    assert stats.n_blocks_free == stats.n_blocks_total == 11
