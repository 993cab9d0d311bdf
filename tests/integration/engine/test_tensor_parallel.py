"""Two processes that hold a model together, its sums over gloo, give the tokens that one does."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.embedding import EmbeddingBackend
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import EngineLost, ModelError
from engine_service.models.manifest import read_manifest
from engine_service.protocol import SamplingParams
from engine_service.runner.rank_messages import Clear
from tests.integration.engine.backend import altered, run_answers, tokens, with_noise
from tests.models import random_bert_dir, random_llama_dir, random_model_dir
from tests.parity import Prompt, run_backend
from tests.waiting import wait_until

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: a K/V head for each rank": ("llama", {}),
    "mistral: one K/V head for both": (
        "mistral",
        {"sliding_window": None, "tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
    "qwen2: biases": ("qwen2", {"num_key_value_heads": 4}),
    "qwen3: normed heads": ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
}


def config_of(model_dir: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model_dir=model_dir,
        device="cpu",
        kernels="torch",
        dtype="float32",
        n_threads=1,
        **{"kv_cache_tokens": 176, "max_batched_tokens": 13, "max_sequences": 8, **settings},
    )


@contextmanager
def two_ranks(model_dir: Path, **settings: Any) -> Iterator[NativeBackend]:
    """This process is rank 0, and the other one ends with the block."""
    n_threads = torch.get_num_threads()
    try:
        backend = NativeBackend(config_of(model_dir, tensor_parallel=2, **settings))
        assert backend._ranks is not None
        yield backend
        backend._ranks.close()
    finally:
        torch.set_num_threads(n_threads)
        if distributed.is_initialized():
            distributed.destroy_process_group()


def prompts_of(rng: random.Random) -> list[Prompt]:
    shared = tuple(rng.randrange(320) for _ in range(40))
    prompts = [tuple(rng.randrange(320) for _ in range(n)) for n in (1, 2, 15, 16, 17, 33, 90)]
    return prompts + [shared + tuple(rng.randrange(320) for _ in range(n)) for n in (1, 8, 30)]


@pytest.mark.parametrize(("family", "settings"), MODELS.values(), ids=MODELS.keys())
def test_equals_one_process_chunked_preempted_and_cached(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    model_dir = random_model_dir(tmp_path, family, **settings)
    prompts = prompts_of(random.Random(7))
    n_tokens = [24] * len(prompts)
    expected = run_backend(NativeBackend(config_of(model_dir)))(prompts, n_tokens)
    with two_ranks(model_dir) as backend:
        generate = run_backend(backend)
        assert generate(prompts, n_tokens) == expected
        assert generate(prompts, n_tokens) == expected
        stats = backend.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0
    assert stats.n_blocks_free == stats.n_blocks_total == 11


def test_answers_that_share_blocks_and_are_drawn_equal_one_process(tmp_path: Path) -> None:
    """Shared blocks are copied before they are written, on every rank, and cleared on a purge."""
    model_dir = random_llama_dir(tmp_path)
    settings = {"kv_cache_tokens": 512, "max_batched_tokens": 64}

    def answers(backend: NativeBackend) -> list[list[int]]:
        rng = random.Random(3)
        requests = [
            EngineRequest(
                key=key,
                prompt_token_ids=tuple(rng.randrange(320) for _ in range(n)),
                sampling=SamplingParams(temperature=0.9, seed=key, n=3, ignore_eos=True),
                max_new_tokens=20,
                cache_tags=("ann",),
            )
            for key, n in enumerate((5, 21, 40))
        ]
        found = run_answers(backend, *requests)
        assert backend.purge("ann") > 0
        return [tokens(outputs) for _, outputs in sorted(found.items())]

    alone = NativeBackend(config_of(model_dir, **settings))
    expected = answers(alone)
    assert len({tuple(each) for each in expected}) == 9
    with two_ranks(model_dir, **settings) as backend:
        assert answers(backend) == expected
        assert answers(backend) == expected


@pytest.mark.parametrize("is_tied", [True, False])
def test_all_that_reads_logits_equals_one_process(tmp_path: Path, is_tied: bool) -> None:
    """Greedy, drawn, filtered, masked by a bias and scored, of prompts too, in steps of every kind;
    the ranks' parts of the vocabulary are of different sizes."""
    model_dir = random_model_dir(tmp_path, "llama", vocab_size=323, tie_word_embeddings=is_tied)
    settings = {"kv_cache_tokens": 512, "max_batched_tokens": 24, "speculation": "ngram"}
    rng = random.Random(5)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
        {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 1.0, "logit_bias": ((322, 9.0), (5, -9.0)), "n": 2},
        {"temperature": 0.0, "repetition_penalty": 1.3},
    ]
    requests = [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple(rng.randrange(40) for _ in range(9 + 11 * key)),
            sampling=SamplingParams(seed=key, ignore_eos=True, **kind),
            max_new_tokens=20,
        )
        for key, kind in enumerate(kinds)
    ]

    def answers(backend: NativeBackend) -> list[Any]:
        found = run_answers(backend, *requests)
        assert all(output.error is None for outputs in found.values() for output in outputs)
        return [(key, tokens(outputs), scores(outputs)) for key, outputs in sorted(found.items())]

    expected = answers(NativeBackend(config_of(model_dir, **settings)))
    assert any(322 in each for _, each, _ in expected), "the last token of the last rank"
    with two_ranks(model_dir, **settings) as backend:
        found = answers(backend)
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    for (_, _, left), (_, _, right) in zip(found, expected, strict=True):
        assert [token_id for token_id, _ in left] == [token_id for token_id, _ in right]
        assert [logprob for _, logprob in left] == pytest.approx([x for _, x in right], abs=1e-4)


def scores(outputs: list[SequenceOutput]) -> list[tuple[int, float]]:
    """Return every token that was scored, of prompts and answers, with its log probability."""
    entries = [entry for each in outputs for entry in (*each.prompt_logprobs, *each.logprobs)]
    return [pair for entry in entries for pair in ((entry.token_id, entry.logprob), *entry.top)]


def test_with_a_draft_model_equals_one_process(tmp_path: Path) -> None:
    """Rank 0 guesses alone, and all check."""
    model_dir = random_llama_dir(tmp_path)
    noisy_dir = with_noise(model_dir, tmp_path)
    prompts = prompts_of(random.Random(7))
    n_tokens = [24] * len(prompts)
    expected = run_backend(NativeBackend(config_of(model_dir)))(prompts, n_tokens)
    with two_ranks(model_dir, draft_model_dir=noisy_dir) as backend:
        generate = run_backend(backend)
        assert generate(prompts, n_tokens) == expected
        assert [generate([each], [24])[0] for each in prompts] == expected
        stats = backend.stats()
    assert 0 < stats.n_accepted_tokens < stats.n_drafted_tokens
    assert stats.n_preemptions > 0


def test_a_draft_model_that_cannot_be_loaded_ends_the_ranks(tmp_path: Path) -> None:
    model_dir = random_llama_dir(tmp_path)
    draft_dir = altered(model_dir, tmp_path, lambda tensors: tensors.popitem())
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with pytest.raises(ModelError, match="model"), two_ranks(model_dir, draft_model_dir=draft_dir):
        pass
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


def test_logits_that_fail_on_rank_0_end_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for its part."""

    def fail(normed: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory")

    with two_ranks(random_llama_dir(tmp_path)) as backend:
        runner: Any = backend._runner
        monkeypatch.setattr(runner._model, "all_logits", fail)
        with pytest.raises(EngineLost, match="rank 0 failed at logits: no memory"):
            run_backend(backend)([(1, 2, 3)], [50])


def test_a_rank_that_ends_is_said_at_once_and_fails_the_next_step(tmp_path: Path) -> None:
    with two_ranks(random_llama_dir(tmp_path)) as backend:
        lost: list[EngineLost] = []
        backend.watch(lost.append)
        children = psutil.Process(os.getpid()).children()
        (rank,) = [each for each in children if "engine_service.runner.rank" in each.cmdline()]
        started_s = time.monotonic()
        rank.kill()
        wait_until("the loss", lambda: lost, timeout_s=2.0)
        assert str(lost[0]) == "rank 1 ended: killed by SIGKILL"
        with pytest.raises(EngineLost):
            run_backend(backend)([(1, 2, 3)], [50])
        assert time.monotonic() - started_s < 5.0


def test_why_a_rank_ends_is_said_though_nobody_asked_it(tmp_path: Path) -> None:
    with two_ranks(random_llama_dir(tmp_path)) as backend:
        lost: list[EngineLost] = []
        backend.watch(lost.append)
        assert backend._ranks is not None
        backend._ranks.send(Clear([10**6]))
        wait_until("the loss", lambda: lost, timeout_s=2.0)
        assert str(lost[0]).startswith("rank 1 failed: index 1000000 is out of bounds")


def test_what_a_rank_finds_wrong_is_said_by_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = random_llama_dir(tmp_path)
    weights = model_dir / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr("engine_service.models.registry.verify_manifest", read_manifest)
    with pytest.raises(ModelError, match=r"rank 1: .* was altered"), two_ranks(model_dir):
        pass


def test_a_processors_kernels_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensor_parallel is for GPUs"):
        NativeBackend(
            EngineConfig(
                model_dir=random_llama_dir(tmp_path),
                device="cpu",
                kernels="reference",
                tensor_parallel=2,
            )
        )


def test_an_embedding_model_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensor_parallel is not supported for an embedding"):
        EmbeddingBackend(EngineConfig(model_dir=random_bert_dir(tmp_path), tensor_parallel=2))
