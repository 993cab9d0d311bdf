"""Adjusting logits in Triton against the oracle, which ``test_device_sampling`` holds to the
CPU's."""

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import AdjustmentTensors, TorchKernels
from engine_service.kernels.triton.adjustments import adjust

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
N_ROWS, VOCAB_SIZE = 9, 4201
NAN, INF = float("nan"), float("inf")


def pairs(n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows and ids, no pair twice, in any order; the last token of the last row is there."""
    chosen = torch.randperm(N_ROWS * VOCAB_SIZE - 1, generator=generator)[:n]
    if n:
        chosen[0] = N_ROWS * VOCAB_SIZE - 1
    return (chosen // VOCAB_SIZE).int().to(DEVICE), (chosen % VOCAB_SIZE).int().to(DEVICE)


def random_adjustments(n_entries: int, n_masked: int, *, seed: int) -> AdjustmentTensors:
    generator = torch.Generator().manual_seed(seed)
    penalized, biased, forbidden = (pairs(n_entries, generator=generator) for _ in range(3))

    def some(n: int, *, low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=generator) * (high - low) + low).to(DEVICE)

    masks = torch.randint(0, 256, (n_masked, VOCAB_SIZE // 8 + 4), generator=generator)
    return AdjustmentTensors(
        penalized_rows=penalized[0],
        penalized_ids=penalized[1],
        counts=some(n_entries, low=0, high=4).floor(),
        repetition=some(N_ROWS, low=0.5, high=2.0),
        frequency=some(N_ROWS, low=-2, high=2),
        presence=some(N_ROWS, low=-2, high=2),
        biased_rows=biased[0],
        biased_ids=biased[1],
        bias=some(n_entries, low=-100, high=100),
        forbidden_rows=forbidden[0],
        forbidden_ids=forbidden[1],
        masked_rows=torch.randperm(N_ROWS, generator=generator)[:n_masked].int().to(DEVICE),
        masks=masks.byte().to(DEVICE),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_entries", "n_masked"), [(0, 0), (1, 1), (700, 0), (0, 5), (300, 9)])
def test_every_kind(n_entries: int, n_masked: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    around = torch.full((N_ROWS, VOCAB_SIZE + 16), 7.0, dtype=dtype)
    around[:, 8:-8] = (torch.randn(N_ROWS, VOCAB_SIZE, generator=generator) * 3.0).to(dtype)
    around[::2, 50], around[::3, 51], around[::4, 52] = NAN, INF, -INF
    around = around.to(DEVICE)
    expected = around.clone()
    adjustments = random_adjustments(n_entries, n_masked, seed=n_entries)
    adjust(around[:, 8:-8], adjustments=adjustments)
    TorchKernels().adjust(expected[:, 8:-8], adjustments=adjustments)
    torch.testing.assert_close(around, expected, rtol=0, atol=0, equal_nan=True)
    assert (around[:, :8] == 7.0).all() and (around[:, -8:] == 7.0).all()
