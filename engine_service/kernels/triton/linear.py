"""Products of a few tokens with a weight matrix, and what stands before and after them in a decoder
layer, in one launch each. They are bound by reading the weights once.

Up to ``_MAX_SUMMED_TOKENS`` tokens a program holds some whole rows of the weight in registers, all
of its loads in flight at once, and multiplies and sums in float32: its warps lie along the row,
which splits the inner dimension without a second pass. Above that tensor cores take the tokens,
padded to 16. Programs compute the norm of their input again, each for itself: that costs less than
a launch. Neither form writes where another program reads, and the order of sums is fixed.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_service.kernels.triton.dependent_launch import is_dependent

MAX_TOKENS = 16
_MAX_SUMMED_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTiles:
    """How a product is cut.

    block_out: outputs of a program, and for swiglu as many gates and ups. block_in: inputs of one
    pass of its loop over them; None where all stand in registers. n_stages: passes in flight.
    """

    block_out: int
    n_warps: int
    block_in: int | None = None
    n_stages: int = 1


def configurations(*, n_tokens: int, n_in: int) -> tuple[LinearTiles, ...]:
    """Return the tiles worth measuring for a product of ``n_tokens`` of ``n_in`` inputs."""
    if n_tokens > _MAX_SUMMED_TOKENS:
        return tuple(
            LinearTiles(block_out=block_out, block_in=block_in, n_warps=n_warps, n_stages=n_stages)
            for block_out in (16, 32, 64)
            for block_in in (64, 128, 256)
            for n_warps in (2, 4)
            for n_stages in (3, 5)
            # What is in flight must fit the shared memory, gates and ups together.
            if (2 * block_out + MAX_TOKENS) * block_in * 2 * n_stages <= 160 * 1024
        )
    row = triton.next_power_of_2(n_in)
    tiles = tuple(
        LinearTiles(block_out=block_out, n_warps=n_warps)
        for block_out in (1, 2, 4, 8, 16)
        for n_warps in (1, 2, 4, 8, 16)
        # Between one load of 16 bytes and a quarter of the registers that a thread may have.
        if row >= 256 * n_warps and block_out * row <= 128 * 32 * n_warps
    )
    return tiles or (_summed_tiles(n_tokens=n_tokens, n_in=n_in, n_matrices=1),)


def linear(
    x: Tensor, *, weight: Tensor, bias: Tensor | None = None, tiles: LinearTiles | None = None
) -> Tensor:
    """Return ``x`` (n_tokens, n_in) times the transpose of ``weight`` (n_out, n_in), plus bias.

    Here and below: at most ``MAX_TOKENS`` tokens; rows may lie apart; ``tiles`` replaces the cut
    chosen by size.
    """
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch(x, weight=weight, bias=bias, out=out, tiles=tiles)
    return out


def linear_add(
    x: Tensor, *, weight: Tensor, residual: Tensor, tiles: LinearTiles | None = None
) -> None:
    """Add the product to ``residual`` (n_tokens, n_out) in place; ``x`` is not part of it."""
    _launch(x, weight=weight, out=residual, adds=True, tiles=tiles)


def norm_linear(
    x: Tensor,
    *,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    tiles: LinearTiles | None = None,
) -> Tensor:
    """Return ``linear`` of the root mean square norm of ``x``, which stays as it is."""
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch(x, weight=weight, bias=bias, out=out, norm_weight=norm_weight, eps=eps, tiles=tiles)
    return out


def norm_gate_up_swiglu(
    x: Tensor,
    *,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    tiles: LinearTiles | None = None,
) -> Tensor:
    """Return silu(gate) * up (n_tokens, n) of the norm of ``x``; ``weight`` (2 * n, n_in) has the
    gate's rows, then the up projection's."""
    out = torch.empty((len(x), len(weight) // 2), dtype=x.dtype, device=x.device)
    _launch(x, weight=weight, out=out, norm_weight=norm_weight, eps=eps, gates=True, tiles=tiles)
    return out


def _launch(
    x: Tensor,
    *,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gates: bool = False,
    adds: bool = False,
    tiles: LinearTiles | None,
) -> None:
    n_tokens, n_in = x.shape
    n_out = out.shape[1]
    if n_tokens > MAX_TOKENS:
        raise ValueError(f"at most {MAX_TOKENS} tokens, not {n_tokens}")
    if tiles is None:
        tiles = _tiles(n_tokens=n_tokens, n_in=n_in, n_out=n_out, gates=gates)
    depends = is_dependent(x.device)
    meta: dict[str, Any] = {"launch_pdl": True} if depends else {}
    if tiles.block_in is None:
        kernel, meta["n_tokens"] = _summed_kernel, n_tokens
    else:
        kernel, meta["n_stages"] = _tensor_core_kernel, tiles.n_stages
    kernel[(triton.cdiv(n_out, tiles.block_out),)](
        x,
        x.stride(0),
        # A missing vector's pointer is not read.
        x if norm_weight is None else norm_weight,
        eps,
        weight,
        weight[n_out:] if gates else weight,
        weight.stride(0),
        x if bias is None else bias,
        out,
        out.stride(0),
        *(() if tiles.block_in is None else (n_tokens,)),
        n_out,
        n_in=n_in,
        has_norm=norm_weight is not None,
        has_bias=bias is not None,
        gates=gates,
        adds=adds,
        dependent=depends,
        block_out=tiles.block_out,
        block_in=tiles.block_in or triton.next_power_of_2(n_in),
        num_warps=tiles.n_warps,
        **meta,
    )


def _tiles(*, n_tokens: int, n_in: int, n_out: int, gates: bool) -> LinearTiles:
    if n_tokens <= _MAX_SUMMED_TOKENS:
        return _summed_tiles(n_tokens=n_tokens, n_in=n_in, n_matrices=2 if gates else 1)
    block_out = 32 if n_out >= 4096 else 16
    block_in = min(max(triton.next_power_of_2(n_in), 16), 4096 // block_out)
    return LinearTiles(block_out=block_out, block_in=block_in, n_warps=4, n_stages=4)


def _summed_tiles(*, n_tokens: int, n_in: int, n_matrices: int) -> LinearTiles:
    """Return what was the fastest within whole steps on an H200 (``benchmarks.gpu.few_rows``): long
    rows go to many warps, short ones to few; and where there are several tokens, whose inputs take
    registers too, to fewer."""
    row = triton.next_power_of_2(n_in)
    if row <= 1024:
        block_out, n_warps = (2, 1) if n_matrices == 2 else (4, 2 if n_tokens == 1 else 1)
    elif row <= 2048:
        block_out, n_warps = (2, 4) if n_tokens == 1 or n_matrices == 2 else (8, 4)
    elif n_tokens == 1:
        block_out, n_warps = max(1, 2**15 // (row * n_matrices)), 16
    else:
        block_out, n_warps = max(1, 2**13 // (row * n_matrices)), 4
    # A thread loads 16 bytes at a time.
    return LinearTiles(block_out=block_out, n_warps=min(n_warps, max(row // 256, 1)))


@triton.jit
def _summed_kernel(
    x,
    x_stride,
    norm_weight,
    eps,
    weight,
    up_weight,
    weight_stride,
    bias,
    out,
    out_stride,
    n_out,
    n_in: tl.constexpr,
    n_tokens: tl.constexpr,
    has_norm: tl.constexpr,
    has_bias: tl.constexpr,
    gates: tl.constexpr,
    adds: tl.constexpr,
    dependent: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
):
    rows = tl.program_id(0) * block_out + tl.arange(0, block_out)
    columns = tl.arange(0, block_in)
    is_row = rows < n_out
    is_column = columns < n_in
    inside = is_row[:, None] & is_column[None, :]
    places = rows.to(tl.int64)[:, None] * weight_stride + columns[None, :]
    # Weights first: they come from the farthest, are read once, and wait for no other kernel.
    first = tl.load(weight + places, mask=inside, other=0.0, eviction_policy="evict_first")
    if gates:
        second = tl.load(up_weight + places, mask=inside, other=0.0, eviction_policy="evict_first")
    if has_norm:
        scale = tl.load(norm_weight + columns, mask=is_column, other=0.0).to(tl.float32)
    if has_bias:
        shift = tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    # Without a barrier the assembler moves each load down to where its values are used, so that
    # one waits for the other.
    tl.debug_barrier()
    if dependent:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # All tokens at once: one after the other each would wait for memory again.
    inputs, sums = (), ()
    for token in tl.static_range(n_tokens):
        values = tl.load(x + token * x_stride + columns, mask=is_column, other=0.0)
        inputs += (values,)  # type: ignore[assignment]
        if adds:
            before = tl.load(out + token * out_stride + rows, mask=is_row, other=0.0)
            sums += (before,)  # type: ignore[assignment]
    tl.debug_barrier()
    for token in tl.static_range(n_tokens):
        values = inputs[token].to(tl.float32)
        rate = 1.0
        if has_norm:
            # The norm's rate is one number: it can wait until after the sum.
            rate = tl.rsqrt(tl.sum(values * values, axis=0) / n_in + eps)
            values *= scale
        product = tl.sum(first.to(tl.float32) * values[None, :], axis=1) * rate
        if gates:
            up = tl.sum(second.to(tl.float32) * values[None, :], axis=1) * rate
            product = product * tl.sigmoid(product) * up
        if has_bias:
            product += shift
        if adds:
            product += sums[token].to(tl.float32)
        ends = out + token * out_stride + rows
        tl.store(ends, product.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _tensor_core_kernel(
    x,
    x_stride,
    norm_weight,
    eps,
    weight,
    up_weight,
    weight_stride,
    bias,
    out,
    out_stride,
    n_tokens,
    n_out,
    n_in: tl.constexpr,
    has_norm: tl.constexpr,
    has_bias: tl.constexpr,
    gates: tl.constexpr,
    adds: tl.constexpr,
    dependent: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    n_stages: tl.constexpr,
):
    rows = tl.program_id(0) * block_out + tl.arange(0, block_out)
    tokens = tl.arange(0, 16)
    columns = tl.arange(0, block_in)
    is_row = rows < n_out
    is_token = tokens < n_tokens
    inputs = x + tokens[:, None] * x_stride + columns[None, :]
    places = rows.to(tl.int64)[:, None] * weight_stride + columns[None, :]
    if dependent:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    rates = tl.full((16,), 1.0, tl.float32)
    if has_norm:
        squares = tl.zeros((16, block_in), tl.float32)
        for start in range(0, n_in, block_in):
            inside = is_token[:, None] & (columns + start < n_in)[None, :]
            values = tl.load(inputs + start, mask=inside, other=0.0).to(tl.float32)
            squares += values * values
        rates = tl.rsqrt(tl.sum(squares, axis=1) / n_in + eps)
    product = tl.zeros((16, block_out), tl.float32)
    up = tl.zeros((16, block_out), tl.float32)
    for start in tl.range(0, n_in, block_in, num_stages=n_stages):
        is_column = columns + start < n_in
        inside = is_token[:, None] & is_column[None, :]
        values = tl.load(inputs + start, mask=inside, other=0.0)
        if has_norm:
            # Normed before it is rounded: without its rate float16 may not hold it.
            scale = tl.load(norm_weight + start + columns, mask=is_column, other=0.0)
            normed = values.to(tl.float32) * rates[:, None] * scale.to(tl.float32)[None, :]
            values = normed.to(x.dtype.element_ty)
        inside = is_row[:, None] & is_column[None, :]
        cut = weight + places + start
        first = tl.load(cut, mask=inside, other=0.0, eviction_policy="evict_first")
        product = tl.dot(values, tl.trans(first), product, input_precision="ieee")
        if gates:
            cut = up_weight + places + start
            second = tl.load(cut, mask=inside, other=0.0, eviction_policy="evict_first")
            up = tl.dot(values, tl.trans(second), up, input_precision="ieee")
    if gates:
        product = product * tl.sigmoid(product) * up
    if has_bias:
        product += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)[None, :]
    ends = out + tokens[:, None] * out_stride + rows[None, :]
    inside = is_token[:, None] & is_row[None, :]
    if adds:
        product += tl.load(ends, mask=inside, other=0.0).to(tl.float32)
    tl.store(ends, product.to(out.dtype.element_ty), mask=inside)
