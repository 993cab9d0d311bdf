"""Steps that overlap, on the processor with the kernels in plain torch: the tokens are those of the
reference executor, and what ends in the middle of a flight ends alone."""

import random
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.__main__ import parse_options
from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.errors import EngineError, RequestError
from engine_service.protocol import SamplingParams, TokenLogprob
from engine_service.runner.device_runner import DeviceRunner
from tests.families import MODELS
from tests.integration.engine.backend import Answers, altered, make_backend, run_answers, tokens
from tests.masks import ListedMask
from tests.models import random_llama_dir, random_model_dir

VOCAB = 320


def on_device(model_dir: Path, **settings: Any) -> NativeBackend:
    # A step's budget would depend on the time that others take.
    wanted = {"device": "cpu", "kernels": "torch", "prefill_slowdown": None, **settings}
    backend = make_backend(model_dir, **wanted)
    assert isinstance(backend._runner, DeviceRunner)
    return backend


def reference(model_dir: Path, **settings: Any) -> NativeBackend:
    wanted = {"kernels": "reference", "kv_cache_tokens": 2048, "speculation": "off", **settings}
    return make_backend(model_dir, **wanted)


def make_request(
    key: int,
    *,
    prompt: Iterable[int] = range(1, 21),
    n_tokens: int = 12,
    mask: Any = None,
    tags: tuple[str, ...] = (),
    **params: Any,
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params}),
        max_new_tokens=n_tokens,
        mask=mask,
        cache_tags=tags,
    )


def crowd(*, n_tokens: int = 9) -> list[EngineRequest]:
    """Greedy and drawn, with and without a shared start, of lengths around a block's."""
    rng = random.Random(3)
    shared = tuple(rng.randrange(VOCAB) for _ in range(35))
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in (1, 15, 16, 33)]
    prompts += [shared + tuple(rng.randrange(VOCAB) for _ in range(n)) for n in (1, 8, 14)]
    return [
        make_request(
            key, prompt=prompt, n_tokens=n_tokens, seed=key, temperature=0.8 if key % 2 else 0.0
        )
        for key, prompt in enumerate(prompts)
    ]


def all_tokens(answers: Answers) -> dict[tuple[int, int], list[int]]:
    assert all(output.error is None for found in answers.values() for output in found)
    return {key: tokens(outputs) for key, outputs in answers.items()}


def step_until(
    backend: NativeBackend, is_reached: Callable[[], bool], *, most: int = 50
) -> list[SequenceOutput]:
    """Step until something is so while a step is in flight; return what came out."""
    outputs: list[SequenceOutput] = []
    for _ in range(most):
        outputs += backend.step()
        if backend._flight is not None and is_reached():
            return outputs
    raise AssertionError(f"not reached in {most} steps")


@pytest.mark.parametrize(("family", "config"), MODELS.values(), ids=MODELS.keys())
def test_tokens_are_those_of_the_reference(
    tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    model_dir = random_model_dir(tmp_path, family, **config)
    window = {"max_model_len": config.get("sliding_window")}
    expected = all_tokens(run_answers(reference(model_dir, **window), *crowd()))
    alone = on_device(model_dir, **window)
    for request in crowd()[3:]:
        assert all_tokens(run_answers(alone, request)) == {
            (request.key, 0): expected[request.key, 0]
        }
    assert alone.stats().n_cached_tokens == 2 * 32
    mixed = on_device(model_dir, kv_cache_tokens=112, max_batched_tokens=13, max_sequences=6)
    for _ in range(2):  # the second time finds what the first left in the prefix cache
        assert all_tokens(run_answers(mixed, *crowd())) == expected
    stats = mixed.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0


def test_who_is_preempted_in_flight_and_would_fit_at_once_is_right(model_dir: Path) -> None:
    """Two compute the same prefix at the same time, each in its own blocks; then one goes."""
    requests = [make_request(key, prompt=range(5, 51), n_tokens=20) for key in (0, 1)]
    expected = all_tokens(run_answers(reference(model_dir), *requests))
    backend = on_device(model_dir, kv_cache_tokens=96)
    assert all_tokens(run_answers(backend, *requests)) == expected
    assert backend.stats().n_preemptions > 0
    assert all_tokens(run_answers(backend, *requests)) == expected


def logprobs_of(outputs: list[SequenceOutput]) -> list[TokenLogprob]:
    prompt = [entry for output in outputs for entry in output.prompt_logprobs]
    return prompt + [entry for output in outputs for entry in output.logprobs]


def test_forks_and_logprobs_are_those_of_the_reference(model_dir: Path) -> None:
    def requests() -> list[EngineRequest]:
        return [
            make_request(0, n=3, temperature=1.0, seed=5, n_tokens=30),
            make_request(1, prompt=range(30, 130), prompt_logprobs=2, logprobs=3),
            make_request(2, prompt=range(40, 57), logprobs=0, temperature=1.0, seed=4),
            make_request(3, prompt=range(60, 75), n=2, logprobs=1, temperature=1.0, seed=6),
            make_request(4, prompt=range(3, 40), n_tokens=30),
        ]

    expected = run_answers(reference(model_dir), *requests())
    for settings in ({}, {"kv_cache_tokens": 176, "max_batched_tokens": 20, "max_sequences": 8}):
        backend = on_device(model_dir, **settings)
        found = run_answers(backend, *requests())
        assert all_tokens(found) == all_tokens(expected)
        for key, outputs in expected.items():
            ours, theirs = logprobs_of(found[key]), logprobs_of(outputs)
            assert [entry.token_id for entry in ours] == [entry.token_id for entry in theirs]
            for entry, entry_of_theirs in zip(ours, theirs, strict=True):
                assert entry.logprob == pytest.approx(entry_of_theirs.logprob, abs=1e-5)
                assert [i for i, _ in entry.top] == [i for i, _ in entry_of_theirs.top]
    assert backend.stats().n_preemptions > 0
    assert len(logprobs_of(found[1, 0])) == 99 + 12


@pytest.mark.parametrize("n_prompt", [1, 16, 17])
def test_forks_start_at_the_end_of_any_chunk(model_dir: Path, n_prompt: int) -> None:
    """Also where that is one token, in a step of nothing but such."""
    request = make_request(0, prompt=range(n_prompt), n=3, temperature=1.0, seed=5)
    other = make_request(1, prompt=range(60, 63), n_tokens=30)
    expected = all_tokens(run_answers(reference(model_dir), request, other))
    backend = on_device(model_dir)
    backend.add(other)
    outputs = step_until(backend, lambda: True)
    found = run_answers(backend, request)
    found[1, 0] = [*outputs, *found[1, 0]]
    assert all_tokens(found) == expected
    # All of its prompt but one token is cached now.
    assert all_tokens(run_answers(backend, request)) == {
        k: v for k, v in expected.items() if not k[0]
    }


def test_what_changes_logits_changes_them_as_on_the_processor(model_dir: Path) -> None:
    def thirds(n_seen: int) -> range:
        return range(n_seen % 3, VOCAB, 3)

    def requests() -> list[EngineRequest]:
        return [
            make_request(0, n_tokens=30, repetition_penalty=1.3, frequency_penalty=0.4),
            make_request(1, n_tokens=30, presence_penalty=1.1),
            make_request(2, logit_bias=((7, 40.0), (9, 40.5), (300, -90.0))),
            make_request(3, ignore_eos=False, logit_bias=((257, 60.0),), min_tokens=6),
            make_request(4, mask=ListedMask(thirds, vocab_size=VOCAB), n_tokens=20),
            make_request(5, prompt=range(9, 60), n_tokens=20),
        ]

    expected = run_answers(reference(model_dir), *requests())
    assert len(tokens(expected[3, 0])) == 7
    for settings in ({}, {"kv_cache_tokens": 144, "max_batched_tokens": 16, "max_sequences": 6}):
        backend = on_device(model_dir, **settings)
        wanted = requests()
        assert all_tokens(run_answers(backend, *wanted)) == all_tokens(expected)
        assert isinstance(wanted[4].mask, ListedMask)
        assert wanted[4].mask.seen == tokens(expected[4, 0])[:-1]
    assert backend.stats().n_preemptions > 0


def test_a_mask_that_allows_nothing_fails_its_request_alone(model_dir: Path) -> None:
    mask = ListedMask(lambda n_seen: range(9) if n_seen < 4 else (), vocab_size=VOCAB)
    backend = on_device(model_dir)
    answers = run_answers(backend, make_request(0, mask=mask), make_request(1))
    last = answers[0, 0][-1]
    assert isinstance(last.error, RequestError)
    assert last.n_completion_tokens == len(tokens(answers[0, 0])) == 4
    assert tokens(answers[1, 0]) == tokens(run_answers(reference(model_dir), make_request(1))[1, 0])


class Knowing:
    """Guesses as the known answers go on, wrong at every fifth place."""

    def __init__(self, known: list[list[int]]) -> None:
        self._known = known

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> list[int]:
        n = len(token_ids)
        for known in self._known:
            if known[:n] == list(token_ids):
                guess = known[n : n + max_tokens]
                return [i if (n + k) % 5 else 7 for k, i in enumerate(guess)]
        return []


def test_guesses_change_no_token(model_dir: Path) -> None:
    requests = crowd(n_tokens=30)
    plain = on_device(model_dir, kv_cache_tokens=1024)
    expected = all_tokens(run_answers(plain, *requests))
    known = [[*each.prompt_token_ids, *expected[each.key, 0]] for each in requests]
    for settings in ({"kv_cache_tokens": 1024}, {"kv_cache_tokens": 128}):
        guessing = on_device(model_dir, speculation="ngram", **settings)
        guessing._scheduler.speculation._make_proposer = lambda: Knowing(known)
        assert all_tokens(run_answers(guessing, requests[0])) == {(0, 0): expected[0, 0]}
        stats = guessing.stats()
        assert 0 < stats.n_accepted_tokens < stats.n_drafted_tokens
        assert stats.n_steps < 25
        assert all_tokens(run_answers(guessing, *requests)) == expected
    assert guessing.stats().n_preemptions > 0
    assert plain.stats().n_drafted_tokens == 0


def test_prompt_lookup_drafts_in_a_loop(model_dir: Path) -> None:
    request = make_request(0, n_tokens=40, logit_bias=((7, 90.0),))  # it says 7 for ever
    backend = on_device(model_dir, speculation="ngram")
    assert all_tokens(run_answers(backend, request)) == {(0, 0): [7] * 40}
    assert backend.stats().n_accepted_tokens > 20


def test_the_command_line_leaves_it_to_the_engine_whether_to_guess() -> None:
    line = ["--model", "m", "--socket", "s", "--epoch", "1"]
    assert parse_options(line).engine.speculation == "auto"


def test_abort_in_flight_frees_at_once_and_reports_what_came(model_dir: Path) -> None:
    requests = [make_request(key, prompt=range(key, key + 30), n_tokens=40) for key in range(4)]
    expected = all_tokens(run_answers(reference(model_dir), *requests))
    # Three fill the pool: the fourth starts in what the abort frees, which a step still writes.
    backend = on_device(model_dir, kv_cache_tokens=144, max_sequences=3)
    for request in requests:
        backend.add(request)
    outputs = step_until(backend, lambda: backend.stats().n_completion_tokens > 20)
    n_free = backend.stats().n_blocks_free
    backend.abort(1)
    assert backend.stats().n_blocks_free > n_free
    rest = run_answers(backend)
    assert [(o.finish_reason, o.token_ids) for o in rest[1, 0]] == [("abort", ())]
    before = tokens(output for output in outputs if output.key == 1)
    assert 0 < rest[1, 0][0].n_completion_tokens == len(before)
    for key in (0, 2, 3):
        mine = [output for output in outputs if output.key == key]
        assert tokens([*mine, *rest[key, 0]]) == expected[key, 0]
    assert (backend.stats().n_finished, backend.stats().n_aborted) == (3, 1)


def test_abort_of_all_in_flight_leaves_nothing(model_dir: Path) -> None:
    backend = on_device(model_dir)
    backend.add(make_request(0, n=3, temperature=1.0))
    step_until(backend, lambda: True)
    backend.abort(0)
    outputs = [output for found in run_answers(backend).values() for output in found]
    assert [(o.choice, o.finish_reason) for o in outputs] == [(i, "abort") for i in range(3)]
    assert backend._flight is None
    assert backend.step() == []


def test_purge_in_flight_clears_what_nobody_holds_and_changes_no_answer(model_dir: Path) -> None:
    request = make_request(0, prompt=range(40), n_tokens=30, tags=("ann",))
    expected = all_tokens(run_answers(reference(model_dir), request))
    backend = on_device(model_dir)
    other = make_request(1, prompt=range(100, 140), n_tokens=1, tags=("ann",))
    run_answers(backend, other)
    backend.add(request)
    outputs = step_until(backend, lambda: backend.stats().n_completion_tokens > 5)
    pool = backend._runner._model.pool  # type: ignore[attr-defined]

    def n_blocks_with_content() -> int:
        return int(pool.tensor[0, 0].flatten(1).any(dim=1).sum())

    n_before = n_blocks_with_content()
    assert backend.purge("ann") == 2 + 2
    assert n_blocks_with_content() == n_before - 2
    outputs += run_answers(backend)[0, 0]
    assert tokens(outputs) == expected[0, 0]
    assert run_answers(backend, other)[1, 0][0].n_cached_tokens == 0


def test_not_finite_output_fails_its_request_and_poisons_nobody(tmp_path: Path) -> None:
    untied = random_llama_dir(tmp_path, tie_word_embeddings=False)
    spoilt = make_request(0, prompt=range(200, 220))
    good = make_request(1, n_tokens=20)
    later = [make_request(i, prompt=range(50, 50 + n), n_tokens=40) for i, n in ((2, 40), (3, 3))]
    expected = all_tokens(run_answers(reference(untied), spoilt, good, *later))
    said = {i for (key, _), answer in expected.items() if key for i in answer}
    answer = expected.pop((0, 0))
    n_before, token_id = next(
        (n, i)
        for n, i in enumerate(answer, start=1)
        if i not in said and i >= 90 and answer.index(i) == n - 1
    )

    def embed_as_nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][token_id] = float("nan")

    model_dir = altered(untied, tmp_path, embed_as_nan)
    backend = on_device(model_dir, kv_cache_tokens=128)
    in_prompt = make_request(4, prompt=(*range(200, 220), token_id))
    answers = run_answers(backend, spoilt, good, in_prompt)
    for key, given in ((0, answer[:n_before]), (4, [])):
        last = answers[key, 0][-1]
        assert str(last.error) == "the model's output for this request is not finite"
        assert tokens(answers[key, 0]) == given
        # What it assumed while in flight is not counted.
        assert last.n_completion_tokens == len(given)
    assert tokens(answers[1, 0]) == expected.pop((1, 0))
    assert backend.stats().n_failed == 2
    assert all_tokens(run_answers(backend, *later)) == expected


@pytest.mark.parametrize("method", ["launch", "collect"])
def test_a_step_that_raises_ends_those_in_flight_and_the_loop_goes_on(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    backend = on_device(model_dir, max_sequences=3)
    waiting = make_request(3, prompt=range(30, 60))
    expected = all_tokens(run_answers(reference(model_dir), waiting))
    for key, n in ((0, 1), (1, 2)):
        backend.add(make_request(key, prompt=range(key, key + 20), n=n, n_tokens=30))
    backend.add(waiting)
    outputs = step_until(backend, lambda: backend.stats().n_completion_tokens > 8)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(backend._runner, method, fail)
        with pytest.raises(RuntimeError):
            backend.step()
    failed = {o.key: o for o in backend.fail_running(EngineError("the step failed"))}
    assert failed.keys() == {0, 1}
    for key, output in failed.items():
        assert str(output.error) == "the step failed"
        of_it = [each for each in outputs if (each.key, each.choice) == (key, output.choice)]
        assert output.n_completion_tokens == len(tokens(of_it)) > 0
    assert all_tokens(run_answers(backend)) == expected
    assert all_tokens(run_answers(backend, waiting)) == expected
    stats = backend.stats()
    assert (stats.n_failed, stats.n_finished) == (2, 2)


def test_counts_are_of_what_was_given_out(model_dir: Path) -> None:
    backend = on_device(model_dir)
    answers = run_answers(backend, *crowd())
    outputs = [output for found in answers.values() for output in found]
    stats = backend.stats()
    assert stats.n_completion_tokens == len(tokens(outputs)) == 7 * 9
    assert stats.n_prompt_tokens == sum(len(each.prompt_token_ids) for each in crowd())
    assert (stats.n_finished, stats.n_failed, stats.n_aborted) == (7, 0, 0)
    for found in answers.values():
        assert [output.n_completion_tokens for output in found] == list(range(1, 10))
        assert [output.finish_reason for output in found] == [None] * 8 + ["length"]
    # All prompts fit one step; nothing is launched for who has all of their tokens.
    assert stats.n_steps == 9
    assert max(output.step or 0 for output in outputs) == 9
