"""Weights of int8 with a float32 scale for each group of inputs of an output, in plain torch: what
the compiled kernels do at loading, and the oracle of their products."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

GROUP: Final = 32
_MOST: Final = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 (n_out, n_groups, GROUP) and float32 scales (n_out, n_groups, 1) of a matrix
    (n_out, n_in), zeros behind its last input; rounded to nearest, by each group's greatest."""
    padded = functional.pad(weight.float(), (0, -weight.shape[1] % GROUP))
    groups = padded.view(len(weight), -1, GROUP)
    scales = groups.abs().amax(dim=-1, keepdim=True) / _MOST
    return (groups / scales).nan_to_num_(0.0).round_().to(torch.int8), scales


def dequantize(values: Tensor, scales: Tensor, *, n_in: int) -> Tensor:
    """Return the float32 (n_out, n_in) that ``quantize`` stands for."""
    return (values * scales).flatten(1)[:, :n_in]
