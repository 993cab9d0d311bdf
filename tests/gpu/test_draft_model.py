"""On a GPU, guesses of either kind run in CUDA graphs and change no token."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.protocol import SamplingParams
from engine_service.runner.decode_graphs import DecodeGraphs
from tests.integration.engine.backend import run, tokens, with_noise
from tests.models import random_llama_dir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

N_TOKENS = 60


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"), head_dim=64)


@pytest.fixture(scope="module")
def draft_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_noise(model_dir, tmp_path_factory.mktemp("draft"))


def make_backend(model_dir: Path, **settings: Any) -> NativeBackend:
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="float32",
            kv_cache_tokens=4096,
            max_sequences=32,
            max_batched_tokens=64,
            **settings,
        )
    )


def make_requests() -> list[EngineRequest]:
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple(range(key, key + 12)) * 3,
            sampling=SamplingParams(temperature=key % 2 * 0.8, seed=key, ignore_eos=True),
            max_new_tokens=N_TOKENS,
        )
        for key in range(4)
    ]


@pytest.mark.parametrize("kind", ["lookup", "draft model"])
def test_tokens_are_those_without_guesses(
    model_dir: Path, draft_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(make_backend(model_dir, speculation="off"), *make_requests())
    settings = {"speculation": "ngram"} if kind == "lookup" else {"draft_model_dir": draft_dir}
    backend = make_backend(model_dir, **settings)
    replay, n_replays = DecodeGraphs.run, 0

    def counted(self: DecodeGraphs, size: int, *, numbers: torch.Tensor) -> torch.Tensor:
        nonlocal n_replays
        n_replays += 1
        return replay(self, size, numbers=numbers)

    monkeypatch.setattr(DecodeGraphs, "run", counted)
    found = run(backend, *make_requests())
    assert {key: tokens(each) for key, each in found.items()} == {
        key: tokens(each) for key, each in expected.items()
    }
    stats = backend.stats()
    assert n_replays > 10
    assert kind == "lookup" or 0 < stats.n_accepted_tokens < stats.n_drafted_tokens


def test_both_sleep_and_their_graphs_come_back(model_dir: Path, draft_dir: Path) -> None:
    backend = make_backend(model_dir, draft_model_dir=draft_dir, sleep_after_s=1.0)
    before = {key: tokens(each) for key, each in run(backend, *make_requests()).items()}
    for _ in range(2):
        n_accepted = backend.stats().n_accepted_tokens
        while backend.rest():
            pass
        assert backend.stats().is_given_back
        found = run(backend, *make_requests())
        assert {key: tokens(each) for key, each in found.items()} == before
        assert backend.stats().n_accepted_tokens > n_accepted
