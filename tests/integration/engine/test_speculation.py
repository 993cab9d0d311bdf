"""Speculation changes how many tokens a step gives, and none of them."""

from collections import defaultdict
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.protocol import SamplingParams
from engine_service.runner.model_runner import ModelRunner
from engine_service.scheduling.batch import Batch, Row
from engine_service.scheduling.sequence import Sequence
from tests.compiled import best_kernels
from tests.integration.engine.backend import Answers, make_backend, run_answers, tokens
from tests.masks import ListedMask

PASSAGE = tuple(range(40, 52))


def best_backend(model_dir: Path, **settings: Any) -> NativeBackend:
    wanted = {"kernels": best_kernels(), "kv_cache_tokens": 1024, **settings}
    return make_backend(model_dir, **wanted)


class Oracle:
    """Guesses from the known answers, wrong at every fifth place."""

    answers: SequenceOf[SequenceOf[int]] = ()

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> list[int]:
        n_known = len(token_ids)
        for answer in self.answers:
            if list(answer[:n_known]) == list(token_ids):
                guess = answer[n_known : n_known + max_tokens]
                return [i if (n_known + k) % 5 else 7 for k, i in enumerate(guess)]
        return []


def guess_from(backend: NativeBackend, answers: SequenceOf[SequenceOf[int]]) -> None:
    oracle = Oracle()
    oracle.answers = answers
    backend._scheduler.speculation._make_proposer = lambda: oracle


def make_request(
    key: int, *, prompt: SequenceOf[int] = PASSAGE * 3, n_tokens: int = 40, **params: Any
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params}),
        max_new_tokens=n_tokens,
    )


def requests() -> list[EngineRequest]:
    """Greedy and drawn; with what must be reported, changed or stopped at besides."""
    return [
        make_request(0),
        make_request(1, prompt=range(1, 30), logprobs=2),
        make_request(2, temperature=0.7, seed=3, logprobs=0),
        make_request(3, prompt=range(60, 75), temperature=1.0, seed=4, top_p=0.9),
        make_request(4, n_tokens=25, frequency_penalty=0.5),
        make_request(5, prompt=range(100, 140), prompt_logprobs=1),
        make_request(6, prompt=range(5, 21), temperature=1.0, seed=9, n=3),
    ]


def run(backend: NativeBackend, wanted: SequenceOf[EngineRequest]) -> Answers:
    answers = run_answers(backend, *wanted)
    assert all(output.error is None for found in answers.values() for output in found)
    return answers


def same(found: Answers, expected: Answers) -> None:
    for key, outputs in expected.items():
        assert tokens(found[key]) == tokens(outputs)
        assert found[key][-1].finish_reason == outputs[-1].finish_reason
        assert found[key][-1].n_completion_tokens == outputs[-1].n_completion_tokens
        entries = [[e for o in part for e in o.logprobs] for part in (found[key], outputs)]
        assert [entry.token_id for entry in entries[0]] == [e.token_id for e in entries[1]]
        assert [entry.logprob for entry in entries[0]] == pytest.approx(
            [entry.logprob for entry in entries[1]], abs=1e-4
        )


@pytest.mark.parametrize("kv_cache_tokens", [1024, 256])
def test_tokens_and_logprobs_are_those_without_it(model_dir: Path, kv_cache_tokens: int) -> None:
    expected: Answers = {}
    plain = best_backend(model_dir, speculation="off")
    for request in requests():
        expected |= run(plain, [request])
    assert plain.stats().n_drafted_tokens == 0
    backend = best_backend(model_dir, kv_cache_tokens=kv_cache_tokens)
    known = [
        (*request.prompt_token_ids, *tokens(expected[request.key, choice]))
        for request in requests()
        for choice in range(request.sampling.n)
    ]
    guess_from(backend, known)
    for request in requests():
        same(run(backend, [request]), {k: v for k, v in expected.items() if k[0] == request.key})
    alone = backend.stats()
    assert alone.n_steps < plain.stats().n_steps
    assert 0 < alone.n_accepted_tokens < alone.n_drafted_tokens
    same(run(backend, requests()), expected)
    assert kv_cache_tokens > 256 or backend.stats().n_preemptions > 0


def test_forced_tokens_are_drafted_and_change_no_token(model_dir: Path) -> None:
    def masked(backend: NativeBackend) -> list[EngineRequest]:
        every = range(backend.info.vocab_size)  # and at every second place no choice but 7
        mask = ListedMask(lambda n_seen: (7,) if n_seen % 2 else every, vocab_size=len(every))
        return [
            replace(request, mask=mask.fork())
            for request in (
                make_request(0),
                make_request(1, prompt=range(1, 30), temperature=1.0, seed=5, logprobs=2),
                make_request(2, prompt=range(5, 21), temperature=1.0, seed=9, n=2),
                make_request(3, prompt=range(9, 30), n_tokens=9, frequency_penalty=0.5),
            )
        ]

    plain = best_backend(model_dir, speculation="off")
    expected = run(plain, masked(plain))
    backend = best_backend(model_dir)
    same(run(backend, masked(backend)), expected)
    assert all(set(tokens(outputs)[1::2]) == {7} for outputs in expected.values())
    assert backend.stats().n_accepted_tokens > 0
    assert backend.stats().n_steps < plain.stats().n_steps


def test_prompt_lookup_alone_drafts_in_a_loop(model_dir: Path) -> None:
    request = make_request(0, n_tokens=200)
    expected = run(best_backend(model_dir, speculation="off"), [request])
    backend = best_backend(model_dir, speculation="ngram")
    same(run(backend, [request]), expected)
    answer = tokens(expected[0, 0])
    repeats = sum(answer[i - 3 : i] in [answer[j - 3 : j] for j in range(3, i)] for i in range(200))
    assert (backend.stats().n_drafted_tokens > 0) == (repeats > 0)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 7])
def test_an_answer_ends_where_it_should_inside_a_draft(model_dir: Path, n_tokens: int) -> None:
    plain = best_backend(model_dir, speculation="off")
    whole = run(plain, [make_request(0)])
    answer = tokens(whole[0, 0])
    backend = best_backend(model_dir)
    guess_from(backend, [(*PASSAGE * 3, *answer)])
    short = run(backend, [make_request(0, n_tokens=n_tokens)])
    assert tokens(short[0, 0]) == answer[:n_tokens]
    assert short[0, 0][-1].finish_reason == "length"
    stop = answer[n_tokens]
    stopped = run(backend, [make_request(0, stop_token_ids=(stop,))])
    assert tokens(stopped[0, 0]) == answer[: answer.index(stop) + 1]
    assert stopped[0, 0][-1].finish_reason == "stop"
    # What the rejected and the cut drafts left in the pool is not found by the next request.
    same(run(backend, [make_request(0)]), whole)


def test_the_whole_context_is_used_and_no_more(model_dir: Path) -> None:
    prompt = PASSAGE * 3
    settings = {"max_model_len": 64, "kv_cache_tokens": 64}
    whole = run(
        best_backend(model_dir, speculation="off", **settings), [make_request(0, n_tokens=28)]
    )
    backend = best_backend(model_dir, **settings)
    guess_from(backend, [(*prompt, *tokens(whole[0, 0]), *[1] * 20)])
    same(run(backend, [make_request(0, n_tokens=28)]), whole)
    assert backend.stats().n_accepted_tokens > 0


class FixedExecutor:
    """Every place has the same logits, whatever comes before."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def forward(self, batch: Batch) -> Tensor:
        return self._logits.repeat(len(batch.logit_places()), 1)

    def clear(self, blocks: SequenceOf[int]) -> None:
        raise NotImplementedError

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("n_steps", [20_000, pytest.param(100_000, marks=pytest.mark.prove)])
def test_the_distribution_is_the_exact_one_whatever_is_drafted(n_steps: int) -> None:
    """Chi-square over the steps at three places; 0.001 of it lies above 24.3 (7 degrees)."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0]])
    runner = ModelRunner(FixedExecutor(logits))
    counts = torch.zeros((3, 8), dtype=torch.float64)
    for start in range(0, n_steps, 2000):
        sequences = [
            Sequence(
                key=key,
                prompt_token_ids=(1,),
                sampling=SamplingParams(),
                max_new_tokens=9,
                cache_salt="",
                seed=key,
            )
            for key in range(start, start + 2000)
        ]
        rows = tuple(
            Row(sequence=sequence, n_computed=0, n_new=3, draft=(0, 1)) for sequence in sequences
        )
        batch = Batch(rows)
        for answer in runner.choose(batch, logits=runner.forward(batch)).answers:
            for place, token_id in enumerate(answer.token_ids):
                counts[place, token_id] += 1
    expected = logits[0].double().softmax(dim=-1)
    assert counts[0].sum() == n_steps
    # The second place is reached when the first draft was right, the third when both were.
    assert counts[1].sum() == counts[0, 0]
    assert counts[2].sum() == counts[1, 1]
    for place in counts:
        found = ((place - place.sum() * expected) ** 2 / (place.sum() * expected)).sum()
        assert found < 24.3


def test_guesses_and_prompts_share_a_step(model_dir: Path) -> None:
    """And none of them waits for the other: the prompt has half of what the streams leave."""
    prompt = tuple(range(100, 160))
    streams = [make_request(key, n_tokens=100) for key in range(3)]
    plain = best_backend(model_dir, speculation="off")
    expected = run(plain, [*streams, make_request(9, prompt=prompt)])
    known = [(*PASSAGE * 3, *tokens(expected[key, 0])) for key in range(3)]

    backend = best_backend(model_dir, max_batched_tokens=32, max_sequences=4, prefill_slowdown=None)
    guess_from(backend, known)
    for request in streams:
        backend.add(request)
    found: Answers = defaultdict(list)
    n_of_prompt: list[int] = []
    n_drafted_beside = 0
    for step in range(1000):
        if step == 6:
            backend.add(make_request(9, prompt=prompt))
        for output in backend.step():
            found[output.key, output.choice].append(output)
        batch = backend._batch
        assert batch is not None
        n_new = sum(row.n_new for row in batch.rows if row.sequence.key == 9 and row.draft == ())
        if step >= 6 and n_new > 1:
            n_of_prompt.append(n_new)
            n_drafted_beside += sum(len(row.draft) for row in batch.rows)
        if not backend.has_work():
            break
    assert n_drafted_beside > 0
    assert sum(n_of_prompt) == len(prompt)
    assert all(n >= (32 - 3) // 2 for n in n_of_prompt[:-1])
    same(found, expected)
