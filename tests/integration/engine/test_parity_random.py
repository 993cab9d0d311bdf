"""Random models of every family give transformers' token ids, however the work is cut."""

import random
from pathlib import Path
from typing import Any

import pytest

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from tests.compiled import best_kernels
from tests.families import MODELS
from tests.models import random_model_dir
from tests.parity import (
    ReferenceAnswer,
    compare,
    reference_answers,
    run_alone,
    run_backend,
)


@pytest.mark.parametrize(("family", "settings"), MODELS.values(), ids=MODELS.keys())
def test_equals_transformers_alone_mixed_preempted_and_cached(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    model_dir = random_model_dir(tmp_path, family, **settings)
    rng = random.Random(7)
    shared = tuple(rng.randrange(320) for _ in range(40))
    prompts = [tuple(rng.randrange(320) for _ in range(n)) for n in (1, 2, 15, 16, 17, 33, 90)]
    prompts += [shared + tuple(rng.randrange(320) for _ in range(n)) for n in (1, 8, 30)]
    answers = reference_answers(model_dir, prompts=prompts, n_tokens=24)
    kernels = best_kernels()
    if settings.get("head_dim") == 8:
        kernels = "reference"  # Narrower than a vector.

    alone = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            dtype="float32",
            kernels=kernels,
            max_model_len=settings.get("sliding_window"),
        )
    )
    report = compare(answers, run_alone(run_backend(alone)))
    assert report.differences == []
    # The second of the prompts with a shared start finds its two full blocks of 16.
    assert alone.stats().n_cached_tokens == 64

    for name in dict.fromkeys((kernels, "reference")):
        mixed = NativeBackend(
            EngineConfig(
                model_dir=model_dir,
                dtype="float32",
                kernels=name,
                kv_cache_tokens=176,
                max_batched_tokens=13,
                max_sequences=8,
            )
        )
        assert_mixed_equals(answers, mixed)


def assert_mixed_equals(answers: list[ReferenceAnswer], mixed: NativeBackend) -> None:
    """Twice, so that the second finds what the first left in the prefix cache."""
    for _ in range(2):
        report = compare(answers, run_backend(mixed))
        print(mixed.info.kernels, report, mixed.stats())
        assert report.differences == []
    stats = mixed.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0
    assert stats.n_blocks_free == stats.n_blocks_total == 11
