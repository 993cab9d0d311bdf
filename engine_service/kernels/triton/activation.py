"""The gate of the Llama family's feed-forward layer (https://arxiv.org/abs/2002.05202)."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of (n_tokens, 2 * n), gate first; the rows may lie apart."""
    n_tokens, width = gate_up.shape
    n = width // 2
    out = torch.empty((n_tokens, n), dtype=gate_up.dtype, device=gate_up.device)
    block = min(_BLOCK, triton.next_power_of_2(n))
    _swiglu_kernel[(n_tokens, triton.cdiv(n, block))](
        gate_up,
        gate_up.stride(0),
        out,
        n,
        block=block,
        num_warps=max(block // 256, 1),
    )
    return out


@triton.jit
def _swiglu_kernel(gate_up, gate_up_stride, out, n, block: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < n
    places = gate_up + token * gate_up_stride + columns
    gate = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(places + n, mask=inside, other=0.0).to(tl.float32)
    gated = gate * tl.sigmoid(gate) * up
    tl.store(out + token * n + columns, gated.to(out.dtype.element_ty), mask=inside)
