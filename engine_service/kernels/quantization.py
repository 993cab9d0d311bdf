"""Weights of eight bits, in plain torch: what becomes of a matrix when it is loaded, and the oracle
of the products with it.

int8 has a float32 scale for each group of inputs of an output, on the processor as on a GPU. fp8 is
float8_e4m3fn (https://arxiv.org/abs/2209.05433) with a float32 scale for each output, on a GPU
only.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

GROUP: Final = 32
# Inputs of a ``QuantizedWeight`` are a multiple of this, so that no kernel needs to mask them.
BLOCK_IN: Final = 128
# Products that are split over their inputs have fewer tiles.
MAX_SPLIT_TILES: Final = 256
_MOST: Final = 127
_FP8_MOST: Final = 448.0  # torch.finfo(torch.float8_e4m3fn).max
_NUMBERS_AT_ONCE: Final = 2**22

Kind = Literal["int8", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedWeight:
    """A matrix (n_out, n_in) as kernels of a GPU read it. Not for two streams at once.

    values: int8 or float8_e4m3fn (n_out, n_padded), zeros behind the last input. scales: float32
    (n_groups, n_out), so that those of neighbouring outputs lie side by side; fp8 has one group of
    all inputs. arrivals: int32 (MAX_SPLIT_TILES,), how many parts of a split product's tile are
    there; zeros between products.
    """

    values: Tensor
    scales: Tensor
    n_in: int
    arrivals: Tensor

    @property
    def n_out(self) -> int:
        return len(self.values)


# (n_out, n_in), as a product takes it.
Matrix = Tensor | QuantizedWeight


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


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return float8_e4m3fn (n_out, n_in) and float32 scales (n_out, 1) of a matrix (n_out, n_in);
    rounded to nearest, by each output's greatest."""
    numbers = weight.float()
    scales = numbers.abs().amax(dim=-1, keepdim=True) / _FP8_MOST
    # Beyond its greatest number the type has none to round to: a quotient may be a little more.
    scaled = (numbers / scales).nan_to_num_(0.0).clamp_(-_FP8_MOST, _FP8_MOST)
    return scaled.to(torch.float8_e4m3fn), scales


def quantize_weight(weight: Tensor, *, kind: Kind) -> QuantizedWeight:
    """Return (n_out, n_in), of any float type, in eight bits on the same device. A few rows go at a
    time: beside the matrix and the result it takes little memory."""
    n_out, n_in = weight.shape
    n_padded = n_in + -n_in % BLOCK_IN
    is_int8 = kind == "int8"
    dtype = torch.int8 if is_int8 else torch.float8_e4m3fn
    n_groups = n_padded // GROUP if is_int8 else 1
    values = torch.zeros((n_out, n_padded), dtype=dtype, device=weight.device)
    scales = torch.zeros((n_groups, n_out), dtype=torch.float32, device=weight.device)
    step = max(1, _NUMBERS_AT_ONCE // n_padded)
    for first in range(0, n_out, step):
        rows = slice(first, first + step)
        found, its_scales = (quantize if is_int8 else quantize_fp8)(weight[rows])
        found = found.flatten(1)
        values[rows, : found.shape[1]] = found
        scales[: its_scales.shape[1], rows] = its_scales.flatten(1).t()
    arrivals = torch.zeros(MAX_SPLIT_TILES, dtype=torch.int32, device=weight.device)
    return QuantizedWeight(values=values, scales=scales, n_in=n_in, arrivals=arrivals)


def dequantize_weight(weight: QuantizedWeight) -> Tensor:
    """Return the float32 (n_out, n_in) that ``weight`` stands for."""
    groups = weight.values.float().view(weight.n_out, len(weight.scales), -1)
    return (groups * weight.scales.t()[:, :, None]).flatten(1)[:, : weight.n_in]
