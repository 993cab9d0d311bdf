"""Changes logits in place before a token is chosen: each entry by itself, whatever row it is of."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from engine_service.kernels.device import AdjustmentTensors

_ENTRIES: Final = 256
_MASKED: Final = 4096


def adjust(logits: Tensor, *, adjustments: AdjustmentTensors) -> None:
    """Change (n_rows, vocab) logits of any float type, whose rows may lie apart: one launch for
    each kind of adjustment that there is, in the order of ``AdjustmentTensors``."""
    stride, vocab_size = logits.stride(0), logits.shape[1]
    if n_entries := len(adjustments.penalized_rows):
        _penalize_kernel[(triton.cdiv(n_entries, _ENTRIES),)](
            logits,
            stride,
            adjustments.penalized_rows,
            adjustments.penalized_ids,
            adjustments.counts,
            adjustments.repetition,
            adjustments.frequency,
            adjustments.presence,
            n_entries,
            entries=_ENTRIES,
            # A product that is rounded before it is subtracted, as everywhere else.
            enable_fp_fusion=False,
        )
    if n_entries := len(adjustments.biased_rows):
        _add_kernel[(triton.cdiv(n_entries, _ENTRIES),)](
            logits,
            stride,
            adjustments.biased_rows,
            adjustments.biased_ids,
            adjustments.bias,
            n_entries,
            entries=_ENTRIES,
        )
    if n_entries := len(adjustments.forbidden_rows):
        _forbid_kernel[(triton.cdiv(n_entries, _ENTRIES),)](
            logits,
            stride,
            adjustments.forbidden_rows,
            adjustments.forbidden_ids,
            n_entries,
            entries=_ENTRIES,
        )
    if n_masked := len(adjustments.masked_rows):
        _mask_kernel[(triton.cdiv(vocab_size, _MASKED), n_masked)](
            logits,
            stride,
            vocab_size,
            adjustments.masked_rows,
            adjustments.masks,
            adjustments.masks.stride(0),
            tokens=_MASKED,
        )


# How many entries there are is another number each time, which must not be compiled for.
@triton.jit(do_not_specialize=["n_entries"])
def _penalize_kernel(
    logits,
    row_stride,
    rows,
    ids,
    counts,
    repetitions,
    frequencies,
    presences,
    n_entries,
    entries: tl.constexpr,
):
    places = tl.program_id(0) * entries + tl.arange(0, entries)
    is_entry = places < n_entries
    row = tl.load(rows + places, mask=is_entry, other=0)
    token = logits + row.to(tl.int64) * row_stride + tl.load(ids + places, mask=is_entry, other=0)
    count = tl.load(counts + places, mask=is_entry, other=0.0)
    repetition = tl.load(repetitions + row, mask=is_entry, other=1.0)
    value = tl.load(token, mask=is_entry, other=0.0).to(tl.float32)
    value = tl.where(value < 0.0, value * repetition, tl.div_rn(value, repetition))
    value -= count * tl.load(frequencies + row, mask=is_entry, other=0.0)
    presence = tl.load(presences + row, mask=is_entry, other=0.0)
    value -= tl.where(count > 0.0, presence, 0.0)
    tl.store(token, value, mask=is_entry)


@triton.jit(do_not_specialize=["n_entries"])
def _add_kernel(logits, row_stride, rows, ids, added, n_entries, entries: tl.constexpr):
    places = tl.program_id(0) * entries + tl.arange(0, entries)
    is_entry = places < n_entries
    row = tl.load(rows + places, mask=is_entry, other=0)
    token = logits + row.to(tl.int64) * row_stride + tl.load(ids + places, mask=is_entry, other=0)
    value = tl.load(token, mask=is_entry, other=0.0).to(tl.float32)
    tl.store(token, value + tl.load(added + places, mask=is_entry, other=0.0), mask=is_entry)


@triton.jit(do_not_specialize=["n_entries"])
def _forbid_kernel(logits, row_stride, rows, ids, n_entries, entries: tl.constexpr):
    places = tl.program_id(0) * entries + tl.arange(0, entries)
    is_entry = places < n_entries
    row = tl.load(rows + places, mask=is_entry, other=0)
    token = logits + row.to(tl.int64) * row_stride + tl.load(ids + places, mask=is_entry, other=0)
    tl.store(token, -float("inf"), mask=is_entry)


@triton.jit
def _mask_kernel(logits, row_stride, vocab_size, rows, masks, mask_stride, tokens: tl.constexpr):
    ids = tl.program_id(0) * tokens + tl.arange(0, tokens)
    mask = tl.program_id(1).to(tl.int64)
    is_token = ids < vocab_size
    bytes_of_8 = tl.load(masks + mask * mask_stride + ids // 8, mask=is_token, other=255)
    is_refused = is_token & (((bytes_of_8.to(tl.int32) >> (ids % 8)) & 1) == 0)
    token = logits + tl.load(rows + mask).to(tl.int64) * row_stride + ids
    # Added, so that what is not a number stays so.
    value = tl.load(token, mask=is_refused, other=0.0).to(tl.float32) - float("inf")
    tl.store(token, value, mask=is_refused)
