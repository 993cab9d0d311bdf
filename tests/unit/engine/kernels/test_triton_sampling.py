"""Sampling in Triton against the oracle: in the interpreter, or on the GPU where there is one."""

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import SamplingTensors, TorchKernels
from engine_service.kernels.triton.sampling import sample

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
ORACLE = TorchKernels()
# Of the whole: as near to a boundary as this, rounding may take the neighbour.
NEAR = 1e-5
NAN, INF = float("nan"), float("inf")
# temperature, top_k, top_p, min_p
GREEDY, PLAIN, COLD = (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.3, 0, 1.0, 0.0)
FILTERED = [
    (1.0, 5, 1.0, 0.0),
    (0.8, 1, 1.0, 0.0),
    (1.0, 200, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.0, 0, 0.5, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.5, 40, 0.8, 0.05),
    (1.0, 30, 0.9, 0.0),
    (1.0, 0, 0.95, 0.3),
    (1.0, 20, 1.0, 0.2),
    (1.0, 0, 1e-9, 0.0),
    (1.0, 10**6, 1.0, 0.0),
]


def sampling_of(rows: list[tuple[float, int, float, float]], *, seed: int = 0) -> SamplingTensors:
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    uniform = torch.rand(
        len(rows), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return SamplingTensors(
        temperature=torch.tensor(temperature).to(DEVICE),
        top_k=torch.tensor(top_k, dtype=torch.int32).to(DEVICE),
        top_p=torch.tensor(top_p).to(DEVICE),
        min_p=torch.tensor(min_p).to(DEVICE),
        uniform=uniform.to(DEVICE),
        filtered=any(row[1] or row[2] < 1.0 or row[3] for row in rows),
        drawn=any(row[0] > 0.0 for row in rows),
    )


def random_logits(n_rows: int, vocab_size: int, *, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rows that lie 8 NaNs apart, so that a read between them shows."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.full((n_rows, vocab_size + 16), NAN, dtype=dtype)
    around[:, 8:-8] = (torch.randn(n_rows, vocab_size, generator=generator) * 3.0).to(dtype)
    return around.to(DEVICE)[:, 8:-8]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is no number that would do."""
    empty = torch.empty

    def poisoned(*args: int, **kwargs: object) -> Tensor:
        made: Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(NAN if made.is_floating_point() else -77_777)

    monkeypatch.setattr(torch, "empty", poisoned)


def is_near_a_boundary(
    logits: Tensor, *, params: tuple[float, int, float, float], u: float
) -> bool:
    """Say whether the oracle's number, or its share of top_p, is within rounding of another."""
    temperature, top_k, top_p, min_p = params
    values = logits.float().double()
    weights = ((values - values.max()) / temperature).exp()
    ranked, ids = weights.sort(descending=True, stable=True)
    if top_k:
        ranked = ranked[:top_k]
    running = ranked.cumsum(dim=0)
    if top_p < 1.0:
        share = top_p * running[-1]
        if ((running - share).abs() < NEAR * running[-1]).any():
            return True
        ranked = ranked[(running - ranked < share) | (torch.arange(len(ranked)) == 0)]
    ranked = ranked[ranked >= min_p]
    kept = torch.zeros_like(weights)
    kept[ids[: len(ranked)]] = ranked
    running = kept.cumsum(dim=0)
    return bool(((running - u * running[-1]).abs() < NEAR * running[-1]).any())


def assert_drawn_alike(logits: Tensor, *, rows: list[tuple[float, int, float, float]]) -> None:
    sampling = sampling_of(rows, seed=len(rows) + logits.shape[1])
    before = logits.clone()
    actual = sample(logits, sampling=sampling)
    assert actual.dtype == torch.int32
    assert torch.equal(logits, before)
    expected = ORACLE.sample(logits, sampling=sampling)
    other = (actual != expected).nonzero()[:, 0].tolist()
    assert len(other) <= len(rows) // 20
    for i in other:
        u = sampling.uniform[i].item()
        assert is_near_a_boundary(logits[i].cpu(), params=rows[i], u=u), (rows[i], i)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_rows", "vocab_size"), [(1, 1), (5, 7), (3, 64), (4, 4097), (2, 9000)])
def test_rows_without_filters(n_rows: int, vocab_size: int, dtype: torch.dtype) -> None:
    logits = random_logits(n_rows, vocab_size, dtype=dtype)
    assert_drawn_alike(logits, rows=[GREEDY] * n_rows)
    assert_drawn_alike(logits, rows=[(PLAIN, COLD, GREEDY)[i % 3] for i in range(n_rows)])


@pytest.mark.parametrize("params", FILTERED)
def test_filters(params: tuple[float, int, float, float]) -> None:
    # Half precision has ties in nearly every row.
    assert_drawn_alike(random_logits(2, 515, dtype=torch.float16), rows=[params] * 2)


def test_filters_of_more_groups_than_are_looked_at_at_once() -> None:
    rows = [(1.0, 70, 0.99, 0.0), (3.0, 0, 0.9, 0.0), (1.0, 0, 1.0, 1e-4)]
    assert_drawn_alike(random_logits(3, 4500, dtype=torch.float16), rows=rows)


def test_filters_in_float32() -> None:
    rows = [(1.0, 20, 0.9, 0.0), (1.0, 0, 0.8, 0.01), PLAIN, GREEDY]
    assert_drawn_alike(random_logits(4, 300, dtype=torch.float32), rows=rows)


def test_of_equals_the_lower_ids_stay() -> None:
    # Zeros of both signs are equals.
    logits = torch.tensor([0.0, -0.0, 0.0, -1.0, -0.0, 0.0], device=DEVICE).half().expand(3, 6)
    rows = [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.36, 0.0), (1.0, 4, 0.5, 0.0)]
    sampling = sampling_of(rows)
    sampling.uniform.fill_(0.999)
    assert sample(logits, sampling=sampling).tolist() == [2, 1, 1]
    assert ORACLE.sample(logits, sampling=sampling).tolist() == [2, 1, 1]


def test_not_finite_rows_have_no_token_and_harm_no_neighbour() -> None:
    logits = torch.full((6, 70), -INF, device=DEVICE)
    logits[0, [3, 69]] = torch.tensor([NAN, 1.0], device=DEVICE)
    logits[1, 5], logits[2, 66], logits[3, [1, 68]] = INF, 0.5, 2.0
    logits[5] = NAN
    for params in (GREEDY, PLAIN, FILTERED[0]):
        actual = sample(logits, sampling=sampling_of([params] * 6)).tolist()
        assert [actual[i] for i in (0, 1, 2, 4, 5)] == [-1, -1, 66, -1, -1]
        assert actual[3] in (1, 68)


@pytest.mark.parametrize("filtered", [False, True])
def test_the_ends_of_the_distribution(filtered: bool) -> None:
    logits = torch.full((2, 200), -INF, device=DEVICE)
    logits[:, 10:130] = 0.0
    sampling = sampling_of([(1.0, 150, 1.0, 0.0) if filtered else PLAIN] * 2)
    sampling.uniform.copy_(torch.tensor([0.0, 1.0 - 2.0**-48]))
    assert sample(logits, sampling=sampling).tolist() == [10, 129]


def test_a_row_draws_the_same_alone_and_in_any_company() -> None:
    rows = [GREEDY, PLAIN, FILTERED[3], COLD, FILTERED[6]]
    logits = random_logits(5, 130, dtype=torch.float16)
    sampling = sampling_of(rows, seed=3)
    together = sample(logits, sampling=sampling).tolist()
    for i, row in enumerate(rows):
        alone = sampling_of([row])
        alone.uniform.copy_(sampling.uniform[i : i + 1])
        assert sample(logits[i : i + 1], sampling=alone).tolist() == [together[i]]


def test_draws_follow_the_distribution() -> None:
    """20,000 numbers evenly random: on the GPU each a row, in the interpreter fewer."""
    n_draws = 20_000 if ON_GPU else 120
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    logits = probabilities.log().to(DEVICE).expand(n_draws, 6)
    actual = sample(logits, sampling=sampling_of([PLAIN] * n_draws, seed=5))
    counts = torch.bincount(actual.cpu().long(), minlength=6)
    mean = probabilities * n_draws
    # The chi-square distribution's 0.9999 quantile for 5 degrees of freedom; the seed is fixed.
    assert ((counts - mean) ** 2 / mean).sum() < 25.8


@pytest.mark.skipif(not ON_GPU, reason="the interpreter would take minutes")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_vocabulary(dtype: torch.dtype) -> None:
    rows = [(GREEDY, PLAIN, COLD, *FILTERED)[i % 15] for i in range(256)]
    assert_drawn_alike(random_logits(256, 151_937, dtype=dtype), rows=rows)
