"""Every sampling parameter against a slow and obvious reference, in mixed batches."""

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.errors import EngineError, RequestError
from engine_service.protocol import SamplingParams
from engine_service.runner.sample_row import SampleRow, mask_comes_first
from engine_service.runner.sampler import Samples, sample
from engine_service.scheduling.sampling_state import SamplingState
from tests.masks import ListedMask

EOS = 3
VOCAB = 37
PROMPT = (5, 1, 5, 8, 30)
ANSWER = (8, 9, 9, 5, 9)


def listed(allowed: Collection[int], *, vocab_size: int = VOCAB) -> ListedMask:
    return ListedMask(lambda n_seen: allowed, vocab_size=vocab_size)


def make_row(
    *,
    seed: int = 0,
    position: int | None = None,
    prompt: tuple[int, ...] = PROMPT,
    answer: tuple[int, ...] = ANSWER,
    mask: Any = None,
    **params: Any,
) -> SampleRow:
    sampling = SamplingParams(**params)
    state = SamplingState.of(sampling, prompt_token_ids=prompt, eos_token_ids=(EOS,), mask=mask)
    return SampleRow(
        params=sampling,
        seed=seed,
        n_generated=len(answer) if position is None else position,
        state=state,
        token_ids=prompt + answer,
    )


def reference_logits(
    logits: list[float], params: SamplingParams, *, allowed: set[int] | None = None
) -> list[float]:
    """The definitions, one token after the other."""
    adjusted = []
    for token_id, value in enumerate(logits):
        if token_id in PROMPT + ANSWER:
            factor = params.repetition_penalty
            value = value * factor if value < 0 else value / factor
        value -= params.frequency_penalty * ANSWER.count(token_id)
        value -= params.presence_penalty * (token_id in ANSWER)
        value += dict(params.logit_bias).get(token_id, 0.0)
        ends = params.stop_token_ids + (() if params.ignore_eos else (EOS,))
        if len(ANSWER) < params.min_tokens and token_id in ends:
            value = -math.inf
        if allowed is not None and token_id not in allowed:
            value = -math.inf
        adjusted.append(value)
    return adjusted


def reference_probabilities(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """What is left for the draw, not yet divided by its sum."""
    best = max(logits)
    weights = {i: math.exp((x - best) / params.temperature) for i, x in enumerate(logits)}
    total = sum(weights.values())
    ranked = sorted(((w / total, i) for i, w in weights.items()), reverse=True)
    if params.top_k:
        ranked = ranked[: params.top_k]
    whole = sum(p for p, _ in ranked)
    kept, reached = {}, 0.0
    for p, token_id in ranked:
        if reached < params.top_p * whole and p >= params.min_p * ranked[0][0] and p > 0:
            kept[token_id] = p
        reached += p
    return kept


CASES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.15},
    {"min_p": 0.3, "temperature": 1.5},
    {"min_p": 0.15, "top_k": 7, "top_p": 0.9},
    {"presence_penalty": 1.5},
    {"presence_penalty": -0.7},
    {"frequency_penalty": 0.8},
    {"frequency_penalty": -0.4, "presence_penalty": 0.3},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.5, "top_k": 9},
    {"logit_bias": ((0, 4.0), (9, -2.5), (36, 3.0))},
    {"logit_bias": ((7, 100.0),), "top_p": 0.5},
    {"min_tokens": 9},
    {"min_tokens": 9, "stop_token_ids": (4, 30)},
    {"min_tokens": 9, "ignore_eos": True, "stop_token_ids": (4,)},
    {"min_tokens": len(ANSWER)},
    {},
)


def random_logits(n_rows: int, *, n_columns: int = VOCAB, seed: int = 5) -> Tensor:
    return torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(seed)) * 1.5


def test_logits_are_adjusted_as_defined_in_a_mixed_batch() -> None:
    picker = random.Random(2)
    lists = [
        set(picker.sample(range(VOCAB), 12)) if i % 3 == 0 else None for i in range(2 * len(CASES))
    ]
    rows = [
        make_row(mask=None if ids is None else listed(ids), **case)
        for ids, case in zip(lists, CASES + CASES[::-1], strict=True)
    ]
    logits = random_logits(len(rows))
    adjusted = logits.clone()
    samples = sample(adjusted, rows=rows)
    assert samples.errors == {}
    n_untouched = 0
    for i, row in enumerate(rows):
        wanted = reference_logits(logits[i].tolist(), row.params, allowed=lists[i])
        assert samples.token_ids[i] in reference_probabilities(wanted, row.params)
        if not mask_comes_first(row.params):
            wanted = reference_logits(logits[i].tolist(), row.params)
        assert adjusted[i].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        if row.state is None:
            n_untouched += 1
            assert torch.equal(adjusted[i], logits[i])
    assert n_untouched == 10


@pytest.mark.parametrize("allowed", [None, set(range(1, VOCAB, 3)), {35}])
def test_greedy_takes_the_best_of_the_adjusted(allowed: set[int] | None) -> None:
    mask = None if allowed is None else listed(allowed)
    rows = [make_row(mask=mask, **{**case, "temperature": 0.0}) for case in CASES]
    logits = random_logits(len(rows))
    wanted = [
        reference_logits(logits[i].tolist(), row.params, allowed=allowed)
        for i, row in enumerate(rows)
    ]
    chosen = sample(logits.clone(), rows=rows).token_ids
    assert chosen == [values.index(max(values)) for values in wanted]
    assert chosen != logits.argmax(dim=-1).tolist()


def assert_follows(drawn: list[int | None], expected: dict[int, float]) -> None:
    n_draws, total = len(drawn), sum(expected.values())
    assert set(drawn) <= expected.keys()
    statistic, rest, n_bins = 0.0, 0.0, 0
    n_rest = n_draws
    for token_id, weight in expected.items():
        mean = n_draws * weight / total
        if mean < 10:  # too few for the distribution: together in one bin
            rest += mean
            continue
        count = drawn.count(token_id)
        n_rest -= count
        n_bins += 1
        statistic += (count - mean) ** 2 / mean
    if rest > 1:
        n_bins += 1
        statistic += (n_rest - rest) ** 2 / rest
    freedom = max(n_bins - 1, 1)
    # The 0.9999 quantile by Wilson and Hilferty; seeds are fixed.
    spread = 2 / (9 * freedom)
    limit = freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3
    print(f"chi-square {statistic:.1f} of {n_draws} draws, {freedom} degrees, limit {limit:.1f}")
    assert statistic < limit


def draw(
    params: dict[str, Any], *, n_draws: int, allowed: set[int] | None = None, shift: float = 0.0
) -> None:
    """shift: by how much what is allowed is less likely."""
    logits = random_logits(1)
    if allowed is not None:
        logits[0, sorted(allowed)] -= shift
    drawn: list[int | None] = []
    row = make_row(mask=None if allowed is None else listed(allowed), **params)
    for start in range(0, n_draws, 5000):
        rows = [
            SampleRow(
                params=row.params,
                seed=start + i,
                n_generated=len(ANSWER),
                state=row.state,
                token_ids=row.token_ids,
            )
            for i in range(5000)
        ]
        drawn += sample(logits.repeat(5000, 1), rows=rows).token_ids
    assert len(drawn) == n_draws
    wanted = reference_logits(logits[0].tolist(), row.params, allowed=allowed)
    assert_follows(drawn, reference_probabilities(wanted, row.params))


@pytest.mark.parametrize("params", CASES)
def test_draws_follow_the_exact_probabilities(params: dict[str, Any]) -> None:
    draw(params, n_draws=5_000)


@pytest.mark.parametrize("shift", [0.0, 200.0])
@pytest.mark.parametrize("params", CASES)
def test_held_draws_follow_the_probabilities_of_what_is_allowed(
    params: dict[str, Any], shift: float
) -> None:
    draw(params, n_draws=5_000, allowed=set(range(0, VOCAB, 3)), shift=shift)


@pytest.mark.prove
@pytest.mark.parametrize("params", CASES)
def test_many_draws_follow_the_exact_probabilities(params: dict[str, Any]) -> None:
    draw(params, n_draws=100_000)


def test_a_row_is_bit_for_bit_the_same_alone_and_in_any_company() -> None:
    n_rows = 3 * len(CASES)
    logits = random_logits(n_rows, n_columns=3001).bfloat16().float()  # with ties

    def rows() -> list[SampleRow]:
        return [
            make_row(
                seed=i,
                mask=listed(set(range(0, 3001, 3)), vocab_size=3001) if i % 4 == 0 else None,
                **{"logprobs": i % 22 - 1 if i % 22 else None, **CASES[i % len(CASES)]},
            )
            for i in range(n_rows)
        ]

    together = sample(logits.clone(), rows=rows())
    backwards = sample(logits.flip(0), rows=rows()[::-1])
    assert together.token_ids == backwards.token_ids[::-1]
    assert len(set(together.token_ids)) > 30
    for i in range(n_rows):
        alone = sample(logits[i : i + 1].clone(), rows=[rows()[i]])
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs.get(0) == together.logprobs.get(i)
        assert backwards.logprobs.get(n_rows - 1 - i) == together.logprobs.get(i)


def test_a_state_that_catches_up_late_knows_the_same() -> None:
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5)
    masks = [listed({1}), listed({1})]
    step_by_step, at_once = (SamplingState(params, prompt_token_ids=PROMPT, mask=m) for m in masks)
    for n in range(len(ANSWER) + 1):
        step_by_step.catch_up(PROMPT + ANSWER[:n])
    at_once.catch_up(PROMPT + ANSWER)
    at_once.catch_up(PROMPT + ANSWER)
    assert masks[0].seen == masks[1].seen == list(ANSWER)
    for state in (step_by_step, at_once):
        known = dict(zip(state.ids, state.counts, strict=True))
        assert known == {5: 1.0, 1: 0.0, 8: 1.0, 30: 0.0, 9: 3.0}


def test_parameters_that_need_no_state_have_none() -> None:
    plain = {"temperature": 0.5, "top_p": 0.5, "min_p": 0.1, "seed": 1, "logprobs": 5}
    assert SamplingState.of(SamplingParams(**plain), prompt_token_ids=PROMPT) is None


class BrokenMask(ListedMask):
    def allowed(self, behind: Sequence[int] = ()) -> bytes:
        raise ValueError("no grammar")

    def n_allowed(self, token_ids: Sequence[int]) -> int:
        raise ValueError("no grammar")


class ShortMask(ListedMask):
    def allowed(self, behind: Sequence[int] = ()) -> bytes:
        return super().allowed(behind)[:-1]


class RefusingMask(ListedMask):
    def accept(self, token_id: int) -> None:
        raise ValueError(f"unexpected {token_id}")


def sampled_beside(row: SampleRow) -> tuple[Samples, Samples]:
    """The row between two others, and those two without it."""
    logits = random_logits(3)
    others = [make_row(seed=1, presence_penalty=1.0), make_row(seed=2, mask=listed({4, 6}))]
    with_it = sample(logits.clone(), rows=[others[0], row, others[1]])
    return with_it, sample(logits[[0, 2]], rows=others)


def test_a_mask_that_forbids_everything_fails_its_own_request() -> None:
    samples, others = sampled_beside(make_row(mask=listed(set())))
    assert (samples.token_ids[::2], samples.token_ids[1]) == (others.token_ids, None)
    (error,) = samples.errors.values()
    assert isinstance(error, RequestError)
    assert (error.code, error.param) == ("no_token_allowed", "response_format")


def test_a_mask_that_allows_only_the_end_before_min_tokens_is_that_error() -> None:
    samples, _ = sampled_beside(make_row(mask=listed({EOS}), min_tokens=9))
    assert isinstance(samples.errors[1], RequestError)
    samples, _ = sampled_beside(make_row(mask=listed({EOS}), min_tokens=len(ANSWER)))
    assert (samples.errors, samples.token_ids[1]) == ({}, EOS)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}])
@pytest.mark.parametrize("kind", [BrokenMask, RefusingMask, ShortMask])
def test_a_mask_that_fails_takes_nobody_with_it(
    kind: type[ListedMask], params: dict[str, Any]
) -> None:
    mask = kind(lambda n_seen: {4}, vocab_size=VOCAB)
    samples, others = sampled_beside(make_row(mask=mask, **params))
    assert (samples.token_ids[::2], samples.token_ids[1]) == (others.token_ids, None)
    assert type(samples.errors[1]) is EngineError
    assert "mask of allowed tokens" in str(samples.errors[1])


def test_not_finite_logits_are_not_blamed_on_the_mask() -> None:
    logits = random_logits(1)
    logits[0, 20] = math.nan
    samples = sample(logits, rows=[make_row(mask=listed({4, 20}), min_tokens=9, logprobs=2)])
    assert (samples.token_ids, samples.errors, samples.logprobs) == ([None], {}, {})


def test_logprobs_are_of_the_model_whatever_the_parameters() -> None:
    logits = random_logits(4)
    rows = [
        make_row(seed=1, logprobs=0, temperature=0.3),
        make_row(seed=2, logprobs=4, frequency_penalty=2.0, mask=listed({2, 9})),
        make_row(seed=3),
        make_row(seed=4, logprobs=20, top_k=1),
    ]
    samples = sample(logits.clone(), rows=rows)
    assert sorted(samples.logprobs) == [0, 1, 3]
    for i, entry in samples.logprobs.items():
        values = logits[i].tolist()
        log_total = math.log(sum(map(math.exp, values)))
        assert entry.token_id == samples.token_ids[i]
        assert entry.logprob == pytest.approx(values[entry.token_id] - log_total, abs=1e-5)
        best = sorted(range(VOCAB), key=lambda token_id: -values[token_id])
        assert [token_id for token_id, _ in entry.top] == best[: rows[i].params.logprobs]
        assert [value for _, value in entry.top] == pytest.approx(
            [values[token_id] - log_total for token_id, _ in entry.top], abs=1e-5
        )


def test_the_lower_id_of_equals_comes_first_among_the_best() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]])
    samples = sample(logits, rows=[make_row(logprobs=4, temperature=0.0, answer=())])
    assert samples.token_ids == [1]
    assert [token_id for token_id, _ in samples.logprobs[0].top] == [1, 2, 4, 0]
