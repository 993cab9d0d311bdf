"""What a device's kernels compute, said once in plain torch: the contract and the oracle of
``kernels.triton``, and what runs where there is a GPU but no Triton.

Shapes of a step: its tokens stand one row after the other, ``n_tokens`` in all. K and V of one
layer are two views (n_blocks, block_size, n_kv_heads, head_dim) of any strides, the last one 1.
Nothing here waits for the device or asks it for a value, so that all of it can be captured in a
CUDA graph; what pads a graph's batch has a context of 0 tokens and slot -1.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine_service.kernels.plain_attention import attend, cast, rotated
from engine_service.kernels.quantization import QuantizedWeight, dequantize_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsOnHost:
    """What the host knows of ``PagedRows``."""

    context_lens: SequenceOf[int]
    query_starts: SequenceOf[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Where the K and V of each row's context are.

    block_tables: int32 (n_rows, max_blocks); what stands behind a row's last block is any number.
    context_lens: int32 (n_rows,), tokens with K and V in the pool, the row's new ones included.
    query_starts: int32 (n_rows + 1,), where each row's new tokens begin among the queries; its new
    tokens are the last of its context. None where each row has one token.
    max_query_len: most new tokens of a row. host: the same numbers, where rows have several tokens.
    """

    block_tables: Tensor
    context_lens: Tensor
    query_starts: Tensor | None = None
    max_query_len: int = 1
    host: RowsOnHost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTensors:
    """How to draw from each row of logits, one entry a row.

    temperature: float32, 0 takes the best. top_k: int32, 0 keeps all. top_p, min_p: float32, 1 and
    0 keep all. uniform: float64 in [0, 1): which token the cumulative distribution gives, in the
    order of ids.

    filtered: rows that ``top_k``, ``top_p`` or ``min_p`` concern, known on the host; a step without
    such rows skips what they cost. drawn: whether any row has a temperature.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    filtered: bool = False
    drawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentTensors:
    """What changes logits before a token is drawn, in this order; each kind may be empty.

    penalized_rows, penalized_ids: int32 (n,), pairs of row and token, none twice, that penalties
    look at; counts: float32 (n,), how often the answer has it, 0 for one that only the prompt has.
    repetition, frequency, presence: float32 (n_rows,), one entry a row, 1 and 0 for none; empty
    where no row has any. biased_rows, biased_ids: int32, pairs, none twice; bias: float32.
    forbidden_rows, forbidden_ids: int32. masked_rows: int32 (n_masked,), none twice; masks: uint8
    (n_masked, n_bytes): token i is bit i % 8 of byte i // 8, 1 allows it; n_bytes may be more than
    the vocabulary needs.
    """

    penalized_rows: Tensor
    penalized_ids: Tensor
    counts: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    biased_rows: Tensor
    biased_ids: Tensor
    bias: Tensor
    forbidden_rows: Tensor
    forbidden_ids: Tensor
    masked_rows: Tensor
    masks: Tensor


class DeviceKernels(Protocol):
    """name: for people and the log."""

    name: str

    def rms_norm(self, x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
        """Return the norm of (n_tokens, hidden), whose rows may lie apart."""

    def add_rms_norm(self, x: Tensor, *, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add ``x`` to ``residual`` in place; return the norm of that sum, taken before it was
        rounded to ``residual``'s type."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        *,
        rotary: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Norm the heads of q and k where a family does, rotate them, store K and V; return q.

        qkv: (n_tokens, n_heads + 2 * n_kv_heads, head_dim), may be overwritten. rotary: float32
        (max_model_len, head_dim), cosines of half a head, then sines. positions: int32 (n_tokens,).
        slots: int32 (n_tokens,), block * block_size + place in it; -1 stores nothing. Returns
        (n_tokens, n_heads, head_dim), whose tokens may lie apart.
        """

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        """Return (n_rows, n_heads * head_dim) of attention of one token a row over its context;
        zeros for a context of none. q: (n_rows, n_heads, head_dim)."""

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        """Return (n_tokens, n_heads * head_dim) of causal attention of each row's new tokens over
        its context. q: (n_tokens, n_heads, head_dim)."""

    def quantized_linear(
        self, x: Tensor, *, weight: QuantizedWeight, bias: Tensor | None
    ) -> Tensor:
        """Return the product (n_tokens, n_out) of (n_tokens, n_in), whose rows may lie apart, and
        the transpose of a weight of eight bits, plus bias (n_out,)."""

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of (n_tokens, 2 * n), gate first."""

    def max_few_rows(self, *, group: int, head_dim: int) -> int:
        """Return for up to how many rows a step is better made of the five that follow; 0 where
        they do not take heads of such a size, ``group`` query heads to each K/V head."""

    def norm_linear(
        self,
        x: Tensor,
        *,
        norm_weight: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return the product (n_tokens, n_out) of the norm of (n_tokens, n_in) and the transpose of
        ``weight`` (n_out, n_in), plus bias."""

    def linear_add(self, x: Tensor, *, weight: Tensor, residual: Tensor) -> None:
        """Add the product of ``x`` to ``residual`` (n_tokens, n_out) in place."""

    def norm_gate_up_swiglu(
        self, x: Tensor, *, norm_weight: Tensor, eps: float, weight: Tensor
    ) -> Tensor:
        """Return silu(gate) * up (n_tokens, n) of the norm of ``x``; ``weight`` (2 * n, n_in) has
        the gate's rows first."""

    def rotate_store_attend(
        self,
        qkv: Tensor,
        *,
        rotary: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        rows: PagedRows,
        scale: float,
        counters: Tensor,
    ) -> Tensor:
        """Do ``rotate_and_store``, then ``decode_attention``, for rows of one token each, whose
        slot is the last of its context. counters: int32, at least n_rows * n_kv_heads zeros, which
        are zeros again afterwards."""

    def adjust(self, logits: Tensor, *, adjustments: AdjustmentTensors) -> None:
        """Change (n_rows, vocab) logits of any float type in place."""

    def sample(self, logits: Tensor, *, sampling: SamplingTensors) -> Tensor:
        """Return int32 (n_rows,): the token of each row of (n_rows, vocab) logits of any float
        type, -1 where its best is not finite. The logits may be overwritten."""


class TorchKernels:
    """Slow and plain; differs from Triton's in rounding only. It copies contexts and loops."""

    name = "torch"

    def rms_norm(self, x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)

    def add_rms_norm(self, x: Tensor, *, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        total = residual.float() + x.float()
        residual.copy_(total)
        return functional.rms_norm(total, weight.shape, weight.float(), eps).to(x.dtype)

    def rotate_and_store(
        self,
        qkv: Tensor,
        *,
        rotary: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        n_kv_heads = k_cache.shape[2]
        n_heads = qkv.shape[1] - 2 * n_kv_heads
        q, k, v = qkv.tensor_split((n_heads, n_heads + n_kv_heads), dim=1)
        if q_norm is not None:
            q = self.rms_norm(q, weight=q_norm, eps=eps)
        if k_norm is not None:
            k = self.rms_norm(k, weight=k_norm, eps=eps)
        cos, sin = rotary[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        q, k = rotated(q, cos=cos, sin=sin), rotated(k, cos=cos, sin=sin)
        kept = (slots >= 0).nonzero()[:, 0]
        places = slots[kept].long()
        block_size = k_cache.shape[1]
        where = (places // block_size, places % block_size)
        k_cache[where] = cast(k[kept], dtype=k_cache.dtype)
        v_cache[where] = cast(v[kept], dtype=v_cache.dtype)
        return q

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        starts = torch.arange(len(q) + 1)
        return attend(
            q,
            starts=starts,
            k_cache=k_cache,
            v_cache=v_cache,
            block_tables=rows.block_tables,
            context_lens=rows.context_lens,
            scale=scale,
        )

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        assert rows.query_starts is not None
        return attend(
            q,
            starts=rows.query_starts,
            k_cache=k_cache,
            v_cache=v_cache,
            block_tables=rows.block_tables,
            context_lens=rows.context_lens,
            scale=scale,
        )

    def quantized_linear(
        self, x: Tensor, *, weight: QuantizedWeight, bias: Tensor | None
    ) -> Tensor:
        wide = None if bias is None else bias.float()
        return functional.linear(x.float(), dequantize_weight(weight), wide).to(x.dtype)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (functional.silu(gate) * up).to(gate_up.dtype)

    def max_few_rows(self, *, group: int, head_dim: int) -> int:
        return 4

    def norm_linear(
        self,
        x: Tensor,
        *,
        norm_weight: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        return functional.linear(self.rms_norm(x, weight=norm_weight, eps=eps), weight, bias)

    def linear_add(self, x: Tensor, *, weight: Tensor, residual: Tensor) -> None:
        residual += functional.linear(x, weight)

    def norm_gate_up_swiglu(
        self, x: Tensor, *, norm_weight: Tensor, eps: float, weight: Tensor
    ) -> Tensor:
        return self.swiglu(self.norm_linear(x, norm_weight=norm_weight, eps=eps, weight=weight))

    def rotate_store_attend(
        self,
        qkv: Tensor,
        *,
        rotary: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        rows: PagedRows,
        scale: float,
        counters: Tensor,
    ) -> Tensor:
        q = self.rotate_and_store(
            qkv,
            rotary=rotary,
            positions=positions,
            slots=slots,
            k_cache=k_cache,
            v_cache=v_cache,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
        )
        return self.decode_attention(q, k_cache=k_cache, v_cache=v_cache, rows=rows, scale=scale)

    def adjust(self, logits: Tensor, *, adjustments: AdjustmentTensors) -> None:
        if len(rows := adjustments.penalized_rows.long()):
            where, counts = (rows, adjustments.penalized_ids.long()), adjustments.counts
            values, repetition = logits[where].float(), adjustments.repetition[rows]
            values = torch.where(values < 0, values * repetition, values / repetition)
            values -= counts * adjustments.frequency[rows]
            values -= (counts > 0) * adjustments.presence[rows]
            logits[where] = values.to(logits.dtype)
        if len(rows := adjustments.biased_rows.long()):
            where = (rows, adjustments.biased_ids.long())
            logits[where] = (logits[where].float() + adjustments.bias).to(logits.dtype)
        if len(rows := adjustments.forbidden_rows.long()):
            logits[rows, adjustments.forbidden_ids.long()] = float("-inf")
        if len(rows := adjustments.masked_rows.long()):
            ids = torch.arange(logits.shape[1], device=logits.device)
            is_allowed = (adjustments.masks[:, ids // 8] >> (ids % 8).byte()) & 1
            logits[rows] += torch.where(is_allowed.bool(), 0.0, float("-inf"))

    def sample(self, logits: Tensor, *, sampling: SamplingTensors) -> Tensor:
        logits = logits.float()
        best = logits.amax(dim=-1, keepdim=True)
        greedy = logits.argmax(dim=-1)
        is_drawn = sampling.temperature > 0
        temperature = torch.where(is_drawn, sampling.temperature, 1.0)[:, None]
        weights = ((logits - best) / temperature).double().exp()
        weights = _filtered(weights, sampling=sampling)
        running = weights.cumsum(dim=-1)
        targets = sampling.uniform[:, None] * running[:, -1:]
        drawn = (running <= targets).sum(dim=-1)
        last = (running < running[:, -1:]).sum(dim=-1)
        chosen = torch.where(is_drawn, torch.minimum(drawn, last), greedy)
        return torch.where(best[:, 0].isfinite(), chosen, -1).int()


def _filtered(weights: Tensor, *, sampling: SamplingTensors) -> Tensor:
    """Return ``weights``, the best of each row 1, with 0 for what the filters leave out: first all
    but the ``top_k`` best, of those what the best ``top_p`` of their sum do not need, and what is
    below ``min_p`` times the best. Of equals the lower ids stay."""
    n_columns = weights.shape[-1]
    values, ids = weights.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(n_columns, device=weights.device)
    top_k = torch.where(sampling.top_k > 0, sampling.top_k, n_columns)[:, None]
    values = values.masked_fill(rank >= top_k, 0.0)
    before = values.cumsum(dim=-1) - values
    outside = before >= sampling.top_p.double()[:, None] * values.sum(dim=-1, keepdim=True)
    outside |= values < sampling.min_p.double()[:, None]
    outside[:, 0] = False
    return torch.zeros_like(weights).scatter_(1, ids, values.masked_fill(outside, 0.0))
