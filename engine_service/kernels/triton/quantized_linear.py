"""Products with weights of eight bits, which ``kernels.quantization`` makes.

Of few rows a product takes as long as its weight takes to read: each value is read once and
multiplied out in registers. Of many, multiplying out is done again for each tile of rows: then it
is cheaper to do it once, into a scratch, and to have the vendor's library multiply. Both round a
value times its scale to the type of the inputs, int8's before the product. fp8's own scale is
applied to the sum where that is in float32 still.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_service.kernels.quantization import (
    BLOCK_IN,
    GROUP,
    MAX_SPLIT_TILES,
    QuantizedWeight,
)
from engine_service.kernels.triton.gpu import Gpu, gpu_of

# From here on multiplying out into a scratch is taken to be the faster way.
_MAX_FUSED_ROWS: Final = 256
# Numbers in the scratch: 32 MiB of them in 16 bits stay in the second-level cache for the most
# part, and a matrix of a large model takes several goes.
_SCRATCH_NUMBERS: Final = 2**24
# Programs that keep the memory of a large GPU busy, about two for each multiprocessor: a product of
# fewer tiles is split over its inputs, each part at least BLOCK_IN of them.
_ENOUGH_PROGRAMS: Final = MAX_SPLIT_TILES
_MAX_PARTS: Final = 8
_PART_REGISTERS: Final = 64
_UNPACK_BLOCK_OUT: Final = 64
# Of the largest tile, three stages take up to 132 KiB.
_LARGE_SHARED_BYTES: Final = 160 * 1024


@dataclass(frozen=True, slots=True)
class _Tile:
    """Of rows and outputs that a program makes."""

    rows: int
    outs: int
    n_warps: int
    n_stages: int

    @property
    def parts_at_once(self) -> int:
        """How many parts of a split product a program can have in flight in its registers."""
        return max(1, _PART_REGISTERS * 32 * self.n_warps // (self.rows * self.outs))


def quantized_linear(x: Tensor, *, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Return (n_rows, n_out) of ``x``'s type: (n_rows, n_in), whose rows may lie apart, times the
    weight, plus ``bias`` (n_out,). Sums are float32."""
    out = torch.empty((len(x), weight.n_out), dtype=x.dtype, device=x.device)
    if len(x) == 0:
        return out
    if len(x) <= _MAX_FUSED_ROWS:
        _multiply(x, weight=weight, bias=bias, out=out)
        return out
    step = min(weight.n_out, max(_UNPACK_BLOCK_OUT, _SCRATCH_NUMBERS // weight.n_in))
    scratch = torch.empty((step, weight.n_in), dtype=x.dtype, device=x.device)
    for first in range(0, weight.n_out, step):
        part = slice(first, first + step)
        matrix = scratch[: min(step, weight.n_out - first)]
        _unpack(weight.values[part], scales=weight.scales[:, part], out=matrix)
        if bias is None:
            torch.mm(x, matrix.t(), out=out[:, part])
        else:
            torch.addmm(bias[part], x, matrix.t(), out=out[:, part])
    return out


def _tile(n_rows: int, *, dtype: torch.dtype, gpu: Gpu) -> _Tile:
    """Return what fits registers and shared memory; float32 takes the double of both."""
    if n_rows <= 16:
        return _Tile(rows=16, outs=64, n_warps=4, n_stages=4)
    if n_rows <= 32 or dtype.itemsize > 2:
        return _Tile(rows=32, outs=64, n_warps=4, n_stages=3)
    if n_rows <= 64:
        return _Tile(rows=64, outs=64, n_warps=4, n_stages=3)
    n_stages = 3 if gpu.shared_bytes >= _LARGE_SHARED_BYTES else 2
    return _Tile(rows=128, outs=128, n_warps=8, n_stages=n_stages)


def _n_parts(n_tiles: int, *, n_padded: int) -> int:
    n_parts = 1
    while n_tiles * n_parts < _ENOUGH_PROGRAMS and n_parts < min(_MAX_PARTS, n_padded // BLOCK_IN):
        n_parts *= 2
    return n_parts


def _multiply(x: Tensor, *, weight: QuantizedWeight, bias: Tensor | None, out: Tensor) -> None:
    n_rows, n_out = out.shape
    n_padded = weight.values.shape[1]
    tile = _tile(n_rows, dtype=x.dtype, gpu=gpu_of(x.device))
    n_tiles = (triton.cdiv(n_rows, tile.rows), triton.cdiv(n_out, tile.outs))
    n_parts = _n_parts(n_tiles[0] * n_tiles[1], n_padded=n_padded)
    sums = out
    if n_parts > 1:
        sums = torch.empty((n_parts, n_rows, n_out), dtype=torch.float32, device=x.device)
    is_grouped = weight.values.dtype == torch.int8
    _product_kernel[(*n_tiles, n_parts)](
        x,
        x.stride(0),
        weight.values,
        weight.scales,
        out if bias is None else bias,  # a missing one's pointer is not read
        out,
        sums,
        weight.arrivals,
        n_rows,
        n_out,
        weight.n_in,
        n_padded,
        has_bias=bias is not None,
        is_grouped=is_grouped,
        n_parts=n_parts,
        parts_at_once=min(n_parts, tile.parts_at_once),
        block_rows=tile.rows,
        block_out=tile.outs,
        block_in=BLOCK_IN,
        group=GROUP if is_grouped else BLOCK_IN,
        num_warps=tile.n_warps,
        num_stages=tile.n_stages,
    )


def _unpack(values: Tensor, *, scales: Tensor, out: Tensor) -> None:
    n_out, n_in = out.shape
    n_padded = values.shape[1]
    is_grouped = values.dtype == torch.int8
    _unpack_kernel[(triton.cdiv(n_out, _UNPACK_BLOCK_OUT), n_padded // BLOCK_IN)](
        values,
        scales,
        scales.stride(0),
        out,
        n_out,
        n_in,
        n_padded,
        is_grouped=is_grouped,
        block_out=_UNPACK_BLOCK_OUT,
        block_in=BLOCK_IN,
        group=GROUP if is_grouped else BLOCK_IN,
    )


# The number of rows changes from step to step: no value of it is worth a kernel of its own.
@triton.jit(do_not_specialize=["n_rows"])
def _product_kernel(
    x,
    x_stride,
    values,
    scales,
    bias,
    out,
    sums,
    arrivals,
    n_rows,
    n_out,
    n_in,
    n_padded,
    has_bias: tl.constexpr,
    is_grouped: tl.constexpr,
    n_parts: tl.constexpr,
    parts_at_once: tl.constexpr,
    block_rows: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    group: tl.constexpr,
):
    """Make one part of a tile (block_out, block_rows): the weight stands first, since tensor cores
    take 64 rows of the first factor, from registers too, and 8 columns of the second."""
    part = tl.program_id(2)
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    outs = tl.program_id(1) * block_out + tl.arange(0, block_out)
    columns = tl.arange(0, group)
    # Behind the last output it is read again, which costs less than a mask and is never stored.
    read = tl.minimum(outs, n_out - 1)
    x_places = x + rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    value_places = values + read.to(tl.int64)[:, None] * n_padded + columns[None, :]
    n_steps = n_padded // block_in
    steps_of_part = tl.cdiv(n_steps, n_parts)
    first = part * steps_of_part
    total = tl.zeros((block_out, block_rows), dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps_of_part, n_steps)):
        for i in tl.static_range(block_in // group):
            start = step * block_in + i * group
            # By way of float32 fp8 becomes bfloat16 without the slow unit for conversions.
            factors = tl.load(value_places + start).to(tl.float32)
            if is_grouped:
                factors *= tl.load(scales + (start // group) * n_out + read)[:, None]
            inside = (rows < n_rows)[:, None] & (start + columns < n_in)[None, :]
            inputs = tl.load(x_places + start, mask=inside, other=0.0)
            total = tl.dot(
                factors.to(inputs.dtype), tl.trans(inputs), total, input_precision="ieee"
            )
    inside = (outs < n_out)[:, None] & (rows < n_rows)[None, :]
    places = outs[:, None] + rows.to(tl.int64)[None, :] * n_out
    if n_parts == 1:
        _finish(total, scales, bias, out, places, inside, read, has_bias, is_grouped)
    else:
        # Whoever comes last adds all parts up, always in the same order.
        size = n_rows * n_out
        tl.store(sums + part * size + places, total, mask=inside)
        tl.debug_barrier()
        arrival = arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == n_parts - 1:
            total = tl.zeros((block_out, block_rows), dtype=tl.float32)
            for i in tl.range(0, n_parts, loop_unroll_factor=parts_at_once):
                total += tl.load(
                    sums + i * size + places, mask=inside, other=0.0, cache_modifier=".cg"
                )
            tl.store(arrival, 0)
            _finish(total, scales, bias, out, places, inside, read, has_bias, is_grouped)


@triton.jit
def _finish(
    total,
    scales,
    bias,
    out,
    places,
    inside,
    read,
    has_bias: tl.constexpr,
    is_grouped: tl.constexpr,
):
    if not is_grouped:
        total *= tl.load(scales + read)[:, None]
    if has_bias:
        total += tl.load(bias + read).to(tl.float32)[:, None]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _unpack_kernel(
    values,
    scales,
    scales_stride,
    out,
    n_out,
    n_in,
    n_padded,
    is_grouped: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    group: tl.constexpr,
):
    """Write a tile (block_out, block_in) of the matrix (n_out, n_in)."""
    outs = tl.program_id(0) * block_out + tl.arange(0, block_out)
    read = tl.minimum(outs, n_out - 1)
    columns = tl.arange(0, group)
    value_places = values + read.to(tl.int64)[:, None] * n_padded
    out_places = out + outs.to(tl.int64)[:, None] * n_in
    for i in tl.static_range(block_in // group):
        inputs = tl.program_id(1) * block_in + i * group + columns
        factors = tl.load(value_places + inputs[None, :]).to(tl.float32)
        if is_grouped:
            index = tl.program_id(1) * (block_in // group) + i
            scale = tl.load(scales + index * scales_stride + read)
        else:
            scale = tl.load(scales + read)
        inside = (outs < n_out)[:, None] & (inputs < n_in)[None, :]
        product = (factors * scale[:, None]).to(out.dtype.element_ty)
        tl.store(out_places + inputs[None, :], product, mask=inside)
