"""Sampling parameters through the whole backend: chunks, the prefix cache, preemption, company."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.errors import RequestError
from engine_service.protocol import SamplingParams, TokenLogprob
from tests.integration.engine.backend import make_backend, run, tokens
from tests.masks import ListedMask

VOCAB = 320


def make_request(
    key: int,
    *,
    prompt: Iterable[int] = range(1, 21),
    n_tokens: int = 8,
    mask: Any = None,
    **params: Any,
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params}),
        max_new_tokens=n_tokens,
        mask=mask,
    )


def prompt_logprobs(outputs: list[SequenceOutput]) -> list[TokenLogprob]:
    return [entry for output in outputs for entry in output.prompt_logprobs]


def multiples(divisor: int, *, n_most: int = 1000) -> ListedMask:
    """Allows the multiples of ``divisor``, and nothing more after ``n_most`` tokens."""
    ids = range(0, VOCAB, divisor)
    return ListedMask(lambda n_seen: ids if n_seen < n_most else (), vocab_size=VOCAB)


def test_a_stop_token_ends_the_answer_and_min_tokens_keeps_it_away(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    free = tokens(run(backend, make_request(0, n_tokens=12))[0])
    stop = free[5]
    stopped = run(backend, make_request(1, n_tokens=12, stop_token_ids=(stop,)))[1]
    assert tokens(stopped) == free[: free.index(stop) + 1]
    assert stopped[-1].finish_reason == "stop"
    longer = run(backend, make_request(2, n_tokens=12, stop_token_ids=(stop,), min_tokens=10))[2]
    assert stop not in tokens(longer)[:10]
    assert len(tokens(longer)) > 10


def crowd() -> list[EngineRequest]:
    return [
        make_request(10 + i, prompt=range(i, i + 50), n_tokens=40, temperature=1.0, seed=i)
        for i in range(5)
    ]


def test_logprobs_are_those_of_transformers(model_dir: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    prompt = tuple(range(1, 101))
    request = make_request(
        0, prompt=prompt, n_tokens=30, logprobs=3, prompt_logprobs=2, repetition_penalty=1.5
    )
    roomy = make_backend(model_dir)
    run(roomy, make_request(1, prompt=prompt))  # leaves the prompt in the prefix cache
    tight = make_backend(model_dir, kv_cache_tokens=256, max_batched_tokens=64)
    for backend, others in ((roomy, []), (tight, crowd())):
        outputs = run(backend, *others, request)[0]
        answer = tokens(outputs)
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *answer]])).logits[0]
        expected = logits.log_softmax(dim=-1)
        entries = prompt_logprobs(outputs)
        entries += [entry for output in outputs for entry in output.logprobs]
        assert [entry.token_id for entry in entries] == [*prompt[1:], *answer]
        for i, entry in enumerate(entries):
            values, ids = expected[i].topk(2 if i < len(prompt) - 1 else 3)
            assert entry.logprob == pytest.approx(expected[i, entry.token_id].item(), abs=1e-3)
            assert [token_id for token_id, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-3)
    assert tight.stats().n_preemptions > 0


def test_preemption_in_the_middle_changes_nothing(model_dir: Path) -> None:
    def wanted() -> EngineRequest:
        return make_request(
            0,
            n_tokens=60,
            temperature=1.0,
            seed=7,
            prompt_logprobs=0,
            frequency_penalty=0.7,
            repetition_penalty=1.2,
            min_p=0.01,
            mask=multiples(2),
        )

    alone = run(make_backend(model_dir), wanted())[0]
    busy = make_backend(model_dir, kv_cache_tokens=192, max_batched_tokens=64)
    others = [make_request(i, prompt=(i,) * 20, n_tokens=60) for i in (1, 2)]
    request = wanted()
    outputs = run(busy, *others, request)[0]
    assert busy.stats().n_preemptions > 0
    assert tokens(outputs) == tokens(alone)
    assert all(token_id % 2 == 0 for token_id in tokens(outputs))
    assert isinstance(request.mask, ListedMask)
    assert request.mask.seen == tokens(outputs)[:-1]
    assert [entry.token_id for entry in prompt_logprobs(outputs)] == list(range(2, 21))


def test_a_mask_that_forbids_everything_ends_its_request_alone(model_dir: Path) -> None:
    backend = make_backend(model_dir)
    alone = tokens(run(backend, make_request(0))[0])
    outputs = run(backend, make_request(1, mask=multiples(3, n_most=4)), make_request(2))
    assert len(tokens(outputs[1])) == 4
    last = outputs[1][-1]
    assert isinstance(last.error, RequestError)
    assert (last.error.param, last.n_completion_tokens) == ("response_format", 4)
    assert tokens(outputs[2]) == alone
    assert backend.stats().n_failed == 1


def test_nothing_is_reported_unasked(model_dir: Path) -> None:
    outputs = run(make_backend(model_dir), make_request(0), make_request(1, logprobs=0))
    assert all(output.logprobs == () for output in outputs[0])
    assert [len(output.logprobs) for output in outputs[1]] == [1] * 8
    assert prompt_logprobs(outputs[0]) == prompt_logprobs(outputs[1]) == []
