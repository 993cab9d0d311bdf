"""The native backend on a tiny random model: isolation of requests, exact counts."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import (
    DeadlineExceeded,
    EngineError,
    Overloaded,
    RequestError,
)
from engine_service.protocol import SamplingParams, Standing
from tests.integration.engine.backend import altered, run, tokens
from tests.models import random_llama_dir

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SETTINGS: dict[str, Any] = {"dtype": "float32", "kv_cache_tokens": 512}


@pytest.fixture(autouse=True)
def either_kernels(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on either."""
    monkeypatch.setitem(SETTINGS, "kernels", kernels)


def make_backend(model_dir: Path, **settings: Any) -> NativeBackend:
    return NativeBackend(EngineConfig(model_dir=model_dir, **{**SETTINGS, **settings}))


def make_request(
    key: int,
    *,
    prompt: Iterable[int] = range(1, 21),
    n_tokens: int = 8,
    sampling: SamplingParams = GREEDY,
    salt: str = "",
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        max_new_tokens=n_tokens,
        cache_salt=salt,
    )


def test_one_output_is_the_last_and_counts_are_totals(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    first = run(backend, make_request(0))[0]
    assert [output.finish_reason for output in first] == [None] * 7 + ["length"]
    assert [output.n_completion_tokens for output in first] == list(range(1, 9))
    again = run(backend, make_request(0))[0]
    assert tokens(again) == tokens(first)
    assert again[-1].n_cached_tokens == 16
    stats = backend.stats()
    assert (stats.n_finished, stats.n_aborted, stats.n_failed) == (2, 0, 0)
    assert (stats.n_prompt_tokens, stats.n_cached_tokens, stats.n_completion_tokens) == (40, 16, 16)
    assert stats.n_steps == 16
    assert stats.last_step_ms > 0.0


def test_an_end_token_finishes_and_is_reported(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    (end_token,) = backend.info.eos_token_ids
    sampling = SamplingParams(temperature=2.0, seed=1)
    outputs = run(
        backend, *(make_request(i, n_tokens=400, sampling=sampling, prompt=(i,)) for i in range(8))
    )
    for sequence in outputs.values():
        ids = tokens(sequence)
        assert end_token not in ids[:-1]
        assert sequence[-1].finish_reason == ("stop" if ids[-1] == end_token else "length")
    assert "stop" in {sequence[-1].finish_reason for sequence in outputs.values()}


def test_the_same_seed_gives_the_same_tokens_in_any_company(model_dir: Path) -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=42, ignore_eos=True)
    wanted = make_request(0, sampling=sampling, n_tokens=30)
    alone = tokens(run(make_backend(model_dir), wanted)[0])
    crowd = [
        make_request(i, prompt=range(i, i + 50), n_tokens=40, sampling=SamplingParams(seed=i))
        for i in range(1, 6)
    ]
    busy = make_backend(model_dir, kv_cache_tokens=256, max_batched_tokens=64)
    assert tokens(run(busy, *crowd, wanted)[0]) == alone
    assert busy.stats().n_preemptions > 0
    other = make_request(0, sampling=SamplingParams(seed=43, ignore_eos=True), n_tokens=30)
    assert tokens(run(make_backend(model_dir), other)[0]) != alone


def test_requests_without_a_seed_differ(model_dir: Path) -> None:
    free = SamplingParams(temperature=2.0, ignore_eos=True)
    outputs = run(make_backend(model_dir), *(make_request(i, sampling=free) for i in range(3)))
    assert len({tuple(tokens(sequence)) for sequence in outputs.values()}) == 3


def test_salts_do_not_share_the_prefix_cache(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    for key, (salt, n_cached) in enumerate([("a", 0), ("b", 0), ("a", 16), ("b", 16), ("", 0)]):
        assert run(backend, make_request(key, salt=salt))[key][-1].n_cached_tokens == n_cached


@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_abort_frees_at_once_and_reports_in_the_next_step(model_dir: Path, n_steps: int) -> None:
    backend = make_backend(model_dir)
    backend.add(make_request(0, n_tokens=100))
    for _ in range(n_steps):
        backend.step()
    backend.abort(0)
    backend.abort(0)
    backend.abort(77)
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    assert backend.has_work()
    (output,) = backend.step()
    assert (output.key, output.finish_reason, output.token_ids) == (0, "abort", ())
    assert output.n_completion_tokens == n_steps
    assert not backend.has_work()
    assert backend.stats().n_aborted == 1


def test_a_refused_request_leaves_nothing_behind(model_dir: Path) -> None:
    backend = make_backend(model_dir, max_waiting=1)
    with pytest.raises(RequestError):
        backend.add(make_request(0, n_tokens=1000))
    assert not backend.has_work()
    backend.add(make_request(0))
    with pytest.raises(EngineError, match="belongs to a live request"):
        backend.add(make_request(0))
    with pytest.raises(Overloaded):
        backend.add(make_request(1))
    assert set(run(backend)) == {0}


def test_a_step_that_raises_ends_its_rows_only(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(model_dir, max_sequences=2)
    expected = tokens(run(make_backend(model_dir), make_request(2, prompt=range(30, 60)))[2])
    for key in (0, 1):
        backend.add(make_request(key))
    backend.add(make_request(2, prompt=range(30, 60)))
    backend.step()
    backend.abort(1)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_runner", None)
        with pytest.raises(AttributeError):
            backend.step()
    outputs = {o.key: o for o in backend.fail_running(EngineError("the step failed"))}
    # 0 was running and 2 was admitted into the step that raised; the abort is not lost.
    assert str(outputs[0].error) == str(outputs[2].error) == "the step failed"
    assert outputs[0].n_completion_tokens == 1
    assert outputs[1].finish_reason == "abort"
    assert not backend.has_work()
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    assert tokens(run(backend, make_request(2, prompt=range(30, 60)))[2]) == expected


def test_scheduling_that_raises_ends_the_one_it_was_busy_with(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(run(make_backend(model_dir), make_request(0))[0])
    backend = make_backend(model_dir)
    backend.add(make_request(0))
    first = backend.step()
    backend.add(make_request(1))
    with monkeypatch.context() as patch:
        patch.setattr(backend._scheduler._tables, "open", None)
        with pytest.raises(TypeError):
            backend.step()
    (failed,) = backend.fail_running(EngineError("the step failed"))
    assert (failed.key, str(failed.error)) == (1, "the step failed")
    assert tokens([*first, *run(backend)[0]]) == expected


def test_a_request_that_waits_beyond_its_deadline_is_failed_alone(model_dir: Path) -> None:
    backend = make_backend(model_dir, max_sequences=1)
    late = replace(make_request(1), standing=Standing(deadline_s=1e-9))
    outputs = run(backend, make_request(0), late)
    assert outputs[0][-1].finish_reason == "length"
    assert [type(output.error) for output in outputs[1]] == [DeadlineExceeded]
    assert backend.stats().n_failed == 1


def test_not_finite_output_fails_its_request_and_poisons_nobody(
    tmp_path: Path,
) -> None:
    untied = random_llama_dir(tmp_path, tie_word_embeddings=False)

    def embed_one_token_as_nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][139] = float("nan")

    model_dir = altered(untied, tmp_path, embed_one_token_as_nan)
    good = make_request(1, n_tokens=4)
    # Together they take every block of the pool, and the short one is padded to the long one.
    later = [make_request(i, prompt=range(50, 50 + n), n_tokens=40) for i, n in ((2, 40), (3, 3))]
    expected = {r.key: tokens(run(make_backend(model_dir), r)[r.key]) for r in (good, *later)}
    backend = make_backend(model_dir, kv_cache_tokens=128)
    outputs = run(backend, make_request(0, prompt=range(100, 140)), good)
    assert str(outputs[0][0].error) == "the model's output for this request is not finite"
    assert len(outputs[0]) == 1
    assert tokens(outputs[1]) == expected[1]
    assert backend.stats().n_failed == 1
    outputs = run(backend, *later)
    assert {key: tokens(outputs[key]) for key in (2, 3)} == {key: expected[key] for key in (2, 3)}


def test_bfloat16_runs_and_agrees_with_float32_at_first(model_dir: Path) -> None:
    backend = make_backend(model_dir, dtype="bfloat16")
    assert backend.info.dtype == "bfloat16"
    prompts = [range(i, i + 10) for i in range(20)]
    requests = [make_request(i, prompt=prompt, n_tokens=1) for i, prompt in enumerate(prompts)]
    low, full = run(backend, *requests), run(make_backend(model_dir), *requests)
    assert sum(tokens(low[i]) == tokens(full[i]) for i in range(20)) >= 18
