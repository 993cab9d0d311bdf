"""n answers to one prompt: shared blocks, own seeds, one end of the request."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.errors import DeadlineExceeded, EngineError, RequestError
from engine_service.protocol import NO_STANDING, SamplingParams, Standing
from engine_service.scheduling.sequence import seed_of_choice
from tests.integration.engine.backend import make_backend, run_answers, tokens
from tests.masks import ListedMask

PROMPT = range(1, 21)  # one block of 16 and a part of another


def make_request(
    key: int,
    *,
    prompt: Iterable[int] = PROMPT,
    n_tokens: int = 8,
    standing: Standing = NO_STANDING,
    mask: Any = None,
    **params: Any,
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"ignore_eos": True, "seed": 5, **params}),
        max_new_tokens=n_tokens,
        standing=standing,
        mask=mask,
    )


@pytest.mark.parametrize("n_prompt", [1, 16, 20])
def test_each_answer_is_the_one_that_its_seed_gives_alone(model_dir: Path, n_prompt: int) -> None:
    prompt = range(1, n_prompt + 1)
    backend = make_backend(model_dir)
    several = run_answers(backend, make_request(0, prompt=prompt, n=4, n_tokens=30, logprobs=2))
    stats = backend.stats()
    assert (stats.n_finished, stats.n_prompt_tokens) == (1, n_prompt)
    assert stats.n_completion_tokens == 4 * 30
    for index in range(4):
        seed = seed_of_choice(5, index=index)
        request = make_request(0, prompt=prompt, seed=seed, n_tokens=30, logprobs=2)
        alone = run_answers(make_backend(model_dir), request)[0, 0]
        assert tokens(several[0, index]) == tokens(alone)
        # The reference kernels' last bits depend on the batch.
        for output, expected in zip(several[0, index], alone, strict=True):
            (entry,), (entry_alone,) = output.logprobs, expected.logprobs
            assert entry.token_id == entry_alone.token_id
            assert entry.logprob == pytest.approx(entry_alone.logprob, abs=1e-4)
        assert [output.finish_reason for output in several[0, index]] == [None] * 29 + ["length"]
    assert seed_of_choice(5, index=0) == 5
    assert len({tuple(tokens(answer)) for answer in several.values()}) == 4


def test_the_prompt_is_computed_once_and_its_full_blocks_are_held_once(model_dir: Path) -> None:
    backend = make_backend(model_dir, max_batched_tokens=512, prefill_slowdown=None)
    backend.add(make_request(0, prompt=range(1, 101), n=8, n_tokens=20))
    backend.step()
    assert backend.stats().n_blocks_free == 32 - 7
    backend.step()
    # Six full blocks are shared; each answer has its own copy of the part-full seventh.
    assert backend.stats().n_blocks_free == 32 - 6 - 8
    assert backend.stats().n_prompt_tokens == 100


def test_company_chunks_preemption_and_the_cache_change_nothing(model_dir: Path) -> None:
    params: dict[str, Any] = {
        "n": 4,
        "n_tokens": 40,
        "frequency_penalty": 0.5,
        "prompt_logprobs": 0,
    }
    expected = run_answers(make_backend(model_dir), make_request(0, prompt=range(1, 41), **params))
    tight = make_backend(model_dir, kv_cache_tokens=256, max_batched_tokens=64)
    run_answers(
        tight, make_request(9, prompt=range(1, 41))
    )  # leaves the prompt in the prefix cache
    others = [make_request(i, prompt=range(i, i + 50), n=2, n_tokens=30) for i in (1, 2)]
    crowded = run_answers(tight, *others, make_request(0, prompt=range(1, 41), **params))
    assert tight.stats().n_preemptions > 0
    for index in range(4):
        assert tokens(crowded[0, index]) == tokens(expected[0, index])
    scored = [entry for output in crowded[0, 0] for entry in output.prompt_logprobs]
    assert [entry.token_id for entry in scored] == list(range(2, 41))
    assert not any(output.prompt_logprobs for output in crowded[0, 1])


def test_greedy_answers_are_all_the_same(model_dir: Path) -> None:
    answers = run_answers(make_backend(model_dir), make_request(0, n=3, temperature=0.0))
    assert len({tuple(tokens(answer)) for answer in answers.values()}) == 1


def test_each_answer_has_its_own_mask(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    vocab_size = backend.info.vocab_size
    mask = ListedMask(lambda n_seen: range(0, vocab_size, 2), vocab_size=vocab_size)
    answers = run_answers(backend, make_request(0, n=3, mask=mask))
    for index, own in enumerate((mask, *mask.forks)):
        answer = tokens(answers[0, index])
        assert own.seen == answer[:-1]
        assert all(token_id % 2 == 0 for token_id in answer)


def test_one_answer_is_aborted_and_the_others_go_on(model_dir: Path) -> None:
    expected = run_answers(make_backend(model_dir), make_request(0, n=3))
    backend = make_backend(model_dir)
    backend.add(make_request(0, n=3))
    outputs = [*backend.step(), *backend.step()]
    backend.abort(0, choice=1)
    backend.abort(0, choice=1)
    rest = run_answers(backend)
    assert [output.finish_reason for output in rest[0, 1]] == ["abort"]
    assert rest[0, 1][0].n_completion_tokens == 2
    for index in (0, 2):
        first = [output for output in outputs if output.choice == index]
        assert tokens([*first, *rest[0, index]]) == tokens(expected[0, index])
    assert (backend.stats().n_finished, backend.stats().n_aborted) == (1, 0)


@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_aborting_the_request_ends_all_answers(model_dir: Path, n_steps: int) -> None:
    backend = make_backend(model_dir)
    backend.add(make_request(0, n=3))
    for _ in range(n_steps):
        backend.step()
    backend.abort(0)
    backend.abort(0)
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    outputs = backend.step()
    assert [(o.choice, o.finish_reason) for o in outputs] == [(i, "abort") for i in range(3)]
    assert not backend.has_work()
    assert backend.stats().n_aborted == 1


def test_a_failing_step_ends_the_request_once(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(model_dir)
    backend.add(make_request(0, n=3))
    backend.step()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_runner", None)
        with pytest.raises(AttributeError):
            backend.step()
    (failed,) = backend.fail_running(EngineError("the step failed"))
    assert str(failed.error) == "the step failed"
    assert not backend.has_work()
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    assert backend.stats().n_failed == 1


def test_an_answer_without_a_token_fails_the_request_once(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    mask = ListedMask(lambda n_seen: (), vocab_size=backend.info.vocab_size)
    other = make_request(1, prompt=range(50, 60))
    outputs = run_answers(backend, make_request(0, n=3, mask=mask), other)
    (failed,) = [output for (key, _), found in outputs.items() if key == 0 for output in found]
    assert isinstance(failed.error, RequestError)
    assert failed.error.param == "response_format"
    assert tokens(outputs[1, 0]) == tokens(run_answers(make_backend(model_dir), other)[1, 0])


def test_a_preempted_answer_beyond_its_deadline_fails_the_request_once(model_dir: Path) -> None:
    backend = make_backend(model_dir, kv_cache_tokens=64)
    backend.add(make_request(0, n=4, n_tokens=40, standing=Standing(deadline_s=3600.0)))
    outputs: list[SequenceOutput] = []
    while not backend.stats().n_waiting:
        outputs += backend.step()
    for sequence in backend._scheduler._waiting:
        sequence.expires_at_s = 0.0
    backend._scheduler._waiting._first_expiry_s = 0.0
    outputs += backend.step()
    assert [type(output.error) for output in outputs if output.error] == [DeadlineExceeded]
    assert outputs[-1].error is not None
    assert not backend.has_work()
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total


def test_more_answers_than_a_batch_has_places_are_refused(model_dir: Path) -> None:
    backend = make_backend(model_dir, max_sequences=2)
    with pytest.raises(RequestError) as caught:
        backend.add(make_request(0, n=3))
    assert caught.value.param == "n"
    assert not backend.has_work()


def test_answers_wait_for_places_for_all_of_them(model_dir: Path) -> None:
    backend = make_backend(model_dir, max_sequences=4)
    backend.add(make_request(0, n=3))
    backend.add(make_request(1, n=2))
    backend.step()
    assert (backend.stats().n_running, backend.stats().n_waiting) == (3, 1)
    assert len(run_answers(backend)) == 5
