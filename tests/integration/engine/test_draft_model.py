"""A draft model changes how many tokens a step gives, and none of them; and what it guesses is what
it would say itself, whatever its pool went through."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.embedding import EmbeddingBackend
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import EngineError, ModelError
from engine_service.protocol import SamplingParams
from engine_service.runner.drafting import DraftingRunner
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.drafting import StepCost
from tests.compiled import best_kernels
from tests.integration.engine import test_speculation
from tests.integration.engine.backend import (
    Answers,
    make_backend,
    run,
    run_answers,
    tokens,
    with_noise,
)
from tests.masks import ListedMask
from tests.models import random_bert_dir, random_llama_dir, random_model_dir, smollm2_dir

KERNELS = (best_kernels(), "reference", "torch")


@pytest.fixture(scope="module")
def noisy_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_noise(model_dir, tmp_path_factory.mktemp("noisy"))


@pytest.fixture(autouse=True)
def _times_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is guessed follows from what was right alone, on a busy machine too."""
    monkeypatch.setattr(StepCost, "record", lambda *_, **__: None)


def request(
    key: int, *, prompt: SequenceOf[int] = range(1, 40), n_tokens: int = 40, **params: Any
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params}),
        max_new_tokens=n_tokens,
    )


def requests() -> list[EngineRequest]:
    """Greedy and drawn; several answers, penalties, what must be reported, the same beginning."""
    others = {
        0: request(0),
        7: request(7, temperature=1.0, seed=2, top_k=9, logit_bias=((5, 3.0),)),
    }
    return [*({each.key: each for each in test_speculation.requests()} | others).values()]


def same(found: Answers, expected: Answers) -> None:
    assert found.keys() == expected.keys()
    assert not any(output.error for outputs in found.values() for output in outputs)
    test_speculation.same(found, expected)


@dataclass(frozen=True)
class Guess:
    """A draft for a request, and all tokens before it."""

    key: int
    seen: tuple[int, ...]
    draft: tuple[int, ...]


def record_guesses(backend: NativeBackend) -> list[Guess]:
    """Have every draft kept."""
    runner = backend._runner
    assert isinstance(runner, DraftingRunner)
    fill = runner._draft_model.fill
    kept: list[Guess] = []

    def filled(batch: Batch) -> Batch:
        found = fill(batch)
        kept.extend(
            Guess(row.sequence.key, tuple(row.sequence.token_ids), row.draft)
            for row in found.rows
            if row.draft
        )
        return found

    runner._draft_model.fill = filled  # type: ignore[method-assign]
    return kept


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kv_cache_tokens", [1024, 256])
def test_the_tokens_are_those_without_it_and_the_guesses_its_own(
    model_dir: Path, noisy_dir: Path, kernels: str, kv_cache_tokens: int
) -> None:
    settings: dict[str, Any] = {"kernels": kernels, "kv_cache_tokens": kv_cache_tokens}
    plain = make_backend(model_dir, speculation="off", **settings)
    expected: Answers = {}
    for each in requests():
        expected |= run_answers(plain, each)
    backend = make_backend(model_dir, draft_model_dir=noisy_dir, **settings)
    guesses = record_guesses(backend)
    for each in requests():
        alone = run_answers(backend, each)
        same(alone, {key: outputs for key, outputs in expected.items() if key[0] == each.key})
    same(run_answers(backend, *requests()), expected)
    stats = backend.stats()
    assert 0 < stats.n_accepted_tokens < stats.n_drafted_tokens
    assert kv_cache_tokens > 256 or stats.n_preemptions > 0
    drafter = make_backend(noisy_dir, speculation="off", kernels=kernels)
    greedy = [guess for guess in guesses if guess.key in (0, 1, 5)]
    assert len(greedy) > 20
    for guess in greedy[::4]:
        said = run(drafter, request(0, prompt=guess.seen, n_tokens=len(guess.draft)))
        assert tuple(tokens(said[0])) == guess.draft


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_model_that_guesses_for_itself_is_always_right(model_dir: Path, kernels: str) -> None:
    """Drawn tokens too: it draws by the same random numbers."""
    backend = make_backend(model_dir, draft_model_dir=model_dir, kernels=kernels)
    plain = make_backend(model_dir, speculation="off", kernels=kernels)
    wanted = [each for each in requests() if not each.sampling.logit_bias]
    same(run_answers(backend, *wanted), run_answers(plain, *wanted))
    stats = backend.stats()
    assert stats.n_accepted_tokens == stats.n_drafted_tokens > 0
    assert stats.n_steps < plain.stats().n_steps


def test_one_of_another_family_guesses_too(model_dir: Path, tmp_path: Path) -> None:
    draft_dir = random_model_dir(tmp_path, "qwen3", head_dim=16)
    backend = make_backend(model_dir, draft_model_dir=draft_dir)
    plain = make_backend(model_dir, speculation="off")
    same(run_answers(backend, *requests()), run_answers(plain, *requests()))
    assert backend.stats().n_drafted_tokens > 0


def test_where_guesses_are_wrong_few_are_made(model_dir: Path, tmp_path: Path) -> None:
    draft_dir = random_model_dir(tmp_path, "qwen3", head_dim=16)
    backend = make_backend(model_dir, draft_model_dir=draft_dir)
    run_answers(backend, *(request(key, n_tokens=200) for key in range(3)))
    first = backend.stats().n_drafted_tokens
    run_answers(backend, *(request(key, n_tokens=200) for key in range(3)))
    assert backend.stats().n_drafted_tokens - first < 60
    assert backend.stats().n_drafted_tokens - first > 0  # it is tried again


def count_tokens(backend: NativeBackend) -> list[int]:
    """Have the tokens of each of the draft model's steps counted."""
    runner = backend._runner
    assert isinstance(runner, DraftingRunner)
    inner = runner._draft_model._runner
    launch = inner.launch
    counts: list[int] = []

    def counted(batch: Batch, *, after: Any) -> Any:
        counts.append(batch.n_tokens)
        return launch(batch, after=after)

    inner.launch = counted  # type: ignore[method-assign]
    return counts


def test_a_prefix_that_was_computed_is_not_computed_again(model_dir: Path) -> None:
    backend = make_backend(model_dir, draft_model_dir=model_dir)
    counts = count_tokens(backend)
    prompt = tuple(range(1, 101))
    run_answers(backend, request(0, prompt=prompt, n_tokens=20))
    assert max(counts) == 101
    counts.clear()
    run_answers(backend, request(1, prompt=prompt, n_tokens=20))
    assert max(counts) <= 101 - 96
    counts.clear()
    other = EngineRequest(
        key=2,
        prompt_token_ids=prompt,
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_new_tokens=20,
        cache_salt="another tenant",
    )
    run_answers(backend, other)
    assert max(counts) == 101


def test_a_prompt_longer_than_a_step_is_caught_up_with_in_several(model_dir: Path) -> None:
    settings: dict[str, Any] = {"max_batched_tokens": 32, "max_sequences": 4}
    backend = make_backend(model_dir, draft_model_dir=model_dir, **settings)
    counts = count_tokens(backend)
    wanted = [request(0, prompt=range(1, 151)), request(1, prompt=range(60, 80))]
    plain = make_backend(model_dir, speculation="off", **settings)
    same(run_answers(backend, *wanted), run_answers(plain, *wanted))
    assert max(counts) <= 32
    stats = backend.stats()
    assert stats.n_accepted_tokens == stats.n_drafted_tokens > 20


def test_behind_the_draft_models_context_nothing_is_guessed(
    model_dir: Path, tmp_path: Path
) -> None:
    draft_dir = random_llama_dir(tmp_path, max_position_embeddings=64)
    backend = make_backend(model_dir, draft_model_dir=draft_dir)
    guesses = record_guesses(backend)
    plain = make_backend(model_dir, speculation="off")
    wanted = [request(0, n_tokens=100)]
    same(run_answers(backend, *wanted), run_answers(plain, *wanted))
    assert guesses
    assert max(len(guess.seen) + len(guess.draft) for guess in guesses) <= 64


@pytest.mark.parametrize("kernels", [best_kernels(), "torch"])
def test_guesses_obey_a_mask(model_dir: Path, noisy_dir: Path, kernels: str) -> None:
    def masked(backend: NativeBackend) -> list[EngineRequest]:
        every = range(backend.info.vocab_size)
        mask = ListedMask(lambda n: (7,) if n % 3 == 2 else every, vocab_size=len(every))
        return [
            replace(each, mask=mask.fork())
            for each in (
                request(0),
                request(1, temperature=1.0, seed=5),
                request(2, n=2, seed=1),
                request(3, temperature=1.0, seed=5, top_p=0.9),
            )
        ]

    plain = make_backend(model_dir, speculation="off", kernels=kernels)
    expected = run_answers(plain, *masked(plain))
    backend = make_backend(model_dir, draft_model_dir=noisy_dir, kernels=kernels)
    guesses = record_guesses(backend)
    same(run_answers(backend, *masked(backend)), expected)
    assert backend.stats().n_accepted_tokens > 0
    assert any(guess.draft != (7,) for guess in guesses)


@pytest.mark.parametrize("kernels", [best_kernels(), "torch"])
def test_a_draft_model_that_fails_costs_no_answer(model_dir: Path, kernels: str) -> None:
    settings: dict[str, Any] = {"kernels": kernels, "max_sequences": 4}
    backend = make_backend(model_dir, draft_model_dir=model_dir, **settings)
    plain = make_backend(model_dir, speculation="off", **settings)
    runner = backend._runner
    assert isinstance(runner, DraftingRunner)
    inner = runner._draft_model._runner
    launch, n_launches = inner.launch, 0

    def failing(batch: Batch, *, after: Any) -> Any:
        nonlocal n_launches
        n_launches += 1
        if n_launches % 4 == 3:
            raise EngineError("no memory for a guess")
        return launch(batch, after=after)

    inner.launch = failing  # type: ignore[method-assign]
    same(run_answers(backend, *requests()), run_answers(plain, *requests()))
    assert n_launches > 8
    assert backend.stats().n_failed == 0
    # Once it works again it guesses again, also for as many as can run.
    inner.launch = launch  # type: ignore[method-assign]
    before = backend.stats().n_accepted_tokens
    same(run_answers(backend, *requests()), run_answers(plain, *requests()))
    assert backend.stats().n_accepted_tokens > before


def test_steps_overlap_while_no_guess_pays_and_it_is_tried_again(
    model_dir: Path, noisy_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_backend(model_dir, speculation="off", kernels="torch")
    backend = make_backend(model_dir, draft_model_dir=noisy_dir, kernels="torch")
    launch = backend._runner.launch
    assumed: list[bool] = []

    def noted(batch: Batch, *, after: Any) -> Any:
        assumed.append(after is not None)
        return launch(batch, after=after)

    monkeypatch.setattr(backend._runner, "launch", noted)
    wanted = [request(key, n_tokens=200, temperature=key / 2, seed=1) for key in range(3)]
    expected = run_answers(plain, *wanted)
    with monkeypatch.context() as patch:
        patch.setattr(StepCost, "worthwhile", lambda *_, **__: 0)
        same(run_answers(backend, *wanted), expected)
    assert sum(assumed) > len(assumed) * 0.7
    assert not all(assumed[10:])  # every so often it looks whether a guess pays again
    assumed.clear()
    same(run_answers(backend, *wanted), expected)
    assert backend.stats().n_accepted_tokens > 0
    assert sum(assumed) < len(assumed) / 2


def test_a_purge_reaches_its_pool(model_dir: Path) -> None:
    backend = make_backend(model_dir, draft_model_dir=model_dir, kernels="reference")
    tagged = replace(request(0, prompt=range(1, 65)), cache_tags=("someone",))
    run_answers(backend, tagged)
    runner = backend._runner
    assert isinstance(runner, DraftingRunner)
    pool = runner._draft_model._runner._executor._kv_cache  # type: ignore[attr-defined]
    held = sum(float(part.abs().sum()) for layer in pool.layers for part in layer)
    assert backend.purge("someone") > 3
    left = sum(float(part.abs().sum()) for layer in pool.layers for part in layer)
    assert left < held / 2


# -- together with what else becomes of memory -----------------------------------------------------


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_with_memory_tiers_it_is_always_right_about_itself(model_dir: Path, kernels: str) -> None:
    """Of blocks that come back from host memory its own pool holds nothing, or something else."""
    settings: dict[str, Any] = {"kernels": kernels, "kv_cache_tokens": 160}
    wanted = [request(key, prompt=range(key, key + 70)) for key in (1, 60, 120)]
    plain = make_backend(model_dir, speculation="off", **settings)
    expected = [run_answers(plain, each) for each in wanted]
    backend = make_backend(
        model_dir, draft_model_dir=model_dir, host_kv_cache_bytes=2**20, **settings
    )
    for _ in range(2):
        for each, answers in zip(wanted, expected, strict=True):
            same(run_answers(backend, each), answers)
    stats = backend.stats()
    assert stats.tiers is not None
    assert stats.tiers.n_host_hits > 3
    assert stats.n_accepted_tokens == stats.n_drafted_tokens > 0


def test_it_sleeps_with_its_target_and_is_right_about_itself_afterwards(model_dir: Path) -> None:
    """The same request gets the same blocks again, which hold nothing any more."""
    settings: dict[str, Any] = {"kernels": "torch", "sleep_after_s": 5.0}
    wanted = request(0, prompt=range(1, 100))
    alone = make_backend(model_dir, speculation="off", **settings)
    expected = run_answers(alone, wanted)
    while alone.rest():
        pass
    backend = make_backend(model_dir, draft_model_dir=model_dir, **settings)
    for _ in range(3):
        same(run_answers(backend, wanted), expected)
        while backend.rest():
            pass
        stats = backend.stats()
        assert stats.is_given_back
        assert stats.saved_bytes == 2 * alone.stats().saved_bytes
        assert all(pool_of(each).untyped_storage().nbytes() == 0 for each in runners(backend))
    assert stats.n_accepted_tokens == stats.n_drafted_tokens > 0


def runners(backend: NativeBackend) -> tuple[Any, Any]:
    runner = backend._runner
    assert isinstance(runner, DraftingRunner)
    return runner._target, runner._draft_model._runner


def pool_of(runner: Any) -> torch.Tensor:
    found: torch.Tensor = runner._model.pool.tensor
    return found


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("speculation", ["ngram", "off"])
def test_other_guesses_beside_it_are_refused(model_dir: Path, speculation: Any) -> None:
    with pytest.raises(ModelError, match=r"draft_model_dir needs speculation auto"):
        make_backend(model_dir, draft_model_dir=model_dir, speculation=speculation)


def test_a_model_with_another_tokenizer_is_refused(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot guess for .* vocabularies differ"):
        make_backend(model_dir, draft_model_dir=smollm2_dir())


def test_a_draft_model_that_is_not_there_is_named(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        make_backend(model_dir, draft_model_dir=tmp_path)


def test_an_embedding_model_refuses_one(model_dir: Path, tmp_path: Path) -> None:
    config = EngineConfig(model_dir=random_bert_dir(tmp_path), draft_model_dir=model_dir)
    with pytest.raises(ModelError, match="draft_model_dir is not supported for an embedding"):
        EmbeddingBackend(config)
