"""The sampler draws what the parameters say, from each row's own seed and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.protocol import SamplingParams
from engine_service.runner.sample_row import SampleRow, uniform
from engine_service.runner.sampler import sample

# Chosen so that the nucleus sums can be read off.
PROBABILITIES = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
N_DRAWS = 4000
# The chi-square distribution's 0.9999 quantile by degrees of freedom: seeds are fixed, so that
# what passes once always passes.
CHI_SQUARE_LIMIT = {1: 15.2, 2: 18.5, 3: 21.2, 4: 23.6, 5: 25.8}


def row(*, seed: int = 0, position: int = 0, **params: Any) -> SampleRow:
    return SampleRow(params=SamplingParams(**params), seed=seed, n_generated=position)


def draw_many(logits: Tensor, **params: Any) -> list[int]:
    rows = [row(seed=17, position=i, **params) for i in range(N_DRAWS)]
    drawn = sample(logits.expand(N_DRAWS, -1), rows=rows).token_ids
    return [token_id for token_id in drawn if token_id is not None]


def assert_distribution(drawn: list[int], expected: dict[int, float]) -> None:
    assert len(drawn) == N_DRAWS
    assert set(drawn) <= expected.keys()
    total = sum(expected.values())
    statistic = 0.0
    for token_id, weight in expected.items():
        mean = N_DRAWS * weight / total
        statistic += (drawn.count(token_id) - mean) ** 2 / mean
    assert statistic < CHI_SQUARE_LIMIT[len(expected) - 1]


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0], [-5.0, -4.0, -3.0]])
    assert sample(logits, rows=[row(temperature=0.0)] * 3).token_ids == [1, 0, 2]
    assert sample(logits, rows=[row(temperature=1e-9)] * 3).token_ids == [1, 0, 2]


def test_plain_sampling_follows_the_softmax() -> None:
    drawn = draw_many(torch.tensor(PROBABILITIES).log())
    assert_distribution(drawn, dict(enumerate(PROBABILITIES)))


def test_temperature_sharpens() -> None:
    drawn = draw_many(torch.tensor(PROBABILITIES).log(), temperature=0.5)
    assert_distribution(drawn, {i: p**2 for i, p in enumerate(PROBABILITIES)})


def test_top_k_keeps_the_k_best() -> None:
    logits = torch.tensor(PROBABILITIES).flip(0).log()
    assert_distribution(draw_many(logits, top_k=3), {5: 0.4, 4: 0.25, 3: 0.15})
    assert set(draw_many(logits, top_k=1)) == {5}
    assert_distribution(
        draw_many(logits, top_k=50), {5 - i: p for i, p in enumerate(PROBABILITIES)}
    )


@pytest.mark.parametrize(
    ("top_p", "n_kept"), [(0.39, 1), (0.41, 2), (0.64, 2), (0.66, 3), (0.95, 5), (0.999, 6)]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, n_kept: int) -> None:
    drawn = draw_many(torch.tensor(PROBABILITIES).log(), top_p=top_p)
    if n_kept == 1:
        assert set(drawn) == {0}
    else:
        assert_distribution(drawn, dict(enumerate(PROBABILITIES[:n_kept])))


def test_top_p_is_of_what_top_k_leaves() -> None:
    # Of 0.4, 0.25, 0.15 the first two are 0.8125: without top_k they would reach 0.7 only with
    # the third.
    drawn = draw_many(torch.tensor(PROBABILITIES).log(), top_k=3, top_p=0.7)
    assert_distribution(drawn, {0: 0.4, 1: 0.25})
    # A part of it that rounds to zero still leaves the best.
    assert set(draw_many(torch.tensor(PROBABILITIES).log(), top_k=1, top_p=5e-324)) == {0}


@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 700}, {"top_k": 700, "top_p": 0.5}])
def test_nuclei_larger_than_the_candidates_are_whole(params: dict[str, Any]) -> None:
    logits = torch.zeros(1000)
    logits[:900] = 1.0
    drawn = draw_many(logits, **params)
    assert len(drawn) == N_DRAWS
    n_kept = {"top_p": 900, "top_k": 700}
    expected = 350 if len(params) == 2 else n_kept[next(iter(params))]
    if params == {"top_p": 0.9}:
        # 900 tokens of e and 100 of 1: nine tenths are reached within the first kind.
        expected = -(-9 * (900 * 2.718281828 + 100) // (10 * 2.718281828))
    assert max(drawn) < 900
    # 4000 draws see nearly all of the kept ones, and not one more.
    assert 0.95 * expected < len(set(drawn)) <= expected


PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_p": 0.9},
    {"top_k": 40},
    {"top_k": 20, "top_p": 0.8, "temperature": 1.5},
    {"top_k": 600},
    {"top_p": 0.999999},
)


def test_a_row_draws_the_same_alone_and_in_any_company() -> None:
    # bfloat16 logits have many ties, which must fall the same way too.
    logits = (torch.randn(64, 5000, generator=torch.Generator().manual_seed(3)) * 2).bfloat16()
    rows = [row(seed=i, position=i % 5, **PARAMS[i % len(PARAMS)]) for i in range(64)]
    together = sample(logits.float(), rows=rows).token_ids
    backwards = sample(logits.float().flip(0), rows=rows[::-1]).token_ids[::-1]
    alone = [sample(logits[i : i + 1].float(), rows=[rows[i]]).token_ids[0] for i in range(64)]
    assert together == backwards == alone
    assert len(set(together)) > 30


def test_seed_and_position_choose_the_number() -> None:
    numbers = {
        uniform(seed, position=i) for seed in (0, 1, -1, 2**63 - 1, -(2**63)) for i in (0, 1)
    }
    assert len(numbers) == 10
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert uniform(5, position=3) == uniform(5, position=3)


def test_not_finite_logits_give_no_token_and_harm_no_neighbour() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[0.0, nan, 1.0], [0.0, 5.0, 1.0], [inf, 0.0, 0.0], [-inf] * 3, [0.0, -inf, -inf]]
    )
    for params in PARAMS:
        drawn = sample(logits, rows=[row(**params)] * 5).token_ids
        assert [drawn[i] for i in (0, 2, 3, 4)] == [None, None, None, 0]
        assert drawn[1] is not None
