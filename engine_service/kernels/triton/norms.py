"""Root mean square normalisation (https://arxiv.org/abs/1910.07467): a program holds a whole row,
so that each byte is read once and written once."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """Return the norm of (n_tokens, hidden), whose rows may lie apart."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    # Nothing is added: the residual's arguments are there for the other form only.
    _launch(x, residual=x, weight=weight, out=out, eps=eps, adds=False)
    return out


def add_rms_norm(x: Tensor, *, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add ``x`` to ``residual`` in place; return the norm of that sum, taken before it was rounded
    to ``residual``'s type."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, residual=residual, weight=weight, out=out, eps=eps, adds=True)
    return out


def _launch(
    x: Tensor, *, residual: Tensor, weight: Tensor, out: Tensor, eps: float, adds: bool
) -> None:
    n_tokens, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    _norm_kernel[(n_tokens,)](
        x,
        x.stride(0),
        residual,
        residual.stride(0),
        weight,
        out,
        hidden,
        eps,
        adds=adds,
        block=block,
        # A thread's load of 16 bytes is 8 elements; several such loads in wide rows.
        num_warps=min(max(block // 256, 1), 8 if block <= 8192 else 16),
    )


@triton.jit
def _norm_kernel(
    x,
    x_stride,
    residual,
    residual_stride,
    weight,
    out,
    hidden,
    eps,
    adds: tl.constexpr,
    block: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < hidden
    values = tl.load(x + token * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if adds:
        places = residual + token * residual_stride + columns
        values += tl.load(places, mask=inside, other=0.0).to(tl.float32)
        tl.store(places, values.to(residual.dtype.element_ty), mask=inside)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, axis=0) / hidden + eps)
    normed = (values * scale).to(out.dtype.element_ty)
    tl.store(out + token * hidden + columns, normed, mask=inside)
