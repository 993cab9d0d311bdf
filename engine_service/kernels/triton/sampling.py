"""Draws a token from each row of logits, which are read once from memory, without asking the device
for anything.

A row's distribution is summed up block by block, each block relative to its own best as in online
softmax (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867); then one program a row
finds the block in which the running sum passes the row's number, and the token in it. No sum is
taken in another order when there are more rows. What top_k, top_p and min_p ask for is in
``filtering``.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_service.kernels.device import SamplingTensors
from engine_service.kernels.triton.filtering import GROUP, draw_filtered, first_beyond, narrow

# What one program sums up, in groups and in tokens.
_BLOCK_GROUPS: Final = 64
_BLOCK: Final = GROUP.value * _BLOCK_GROUPS
# Of a float32 that was one of these, so many bits say nothing: keys without them are found faster.
_LOW_BITS: Final = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


def sample(logits: Tensor, *, sampling: SamplingTensors) -> Tensor:
    """Return int32 (n_rows,): the token of each row of (n_rows, vocab) logits, whose rows may lie
    apart; -1 where its best is not finite. The logits are left as they are."""
    n_rows, vocab_size = logits.shape
    device = logits.device
    tokens = torch.empty(n_rows, dtype=torch.int32, device=device)
    if not n_rows:
        return tokens
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    is_filtered = sampling.drawn and sampling.filtered
    n_blocks, n_groups = triton.cdiv(vocab_size, _BLOCK), triton.cdiv(vocab_size, GROUP.value)
    # Each in memory of its own: a pointer less aligned than before is compiled for anew. Empty,
    # and not looked at, where no row is filtered.
    n_columns = n_groups if is_filtered else 0
    block_bests = torch.empty(n_rows, n_blocks, device=device)
    block_sums = torch.empty(n_rows, n_blocks, device=device)
    block_ids = torch.empty(n_rows, n_blocks, dtype=torch.int32, device=device)
    group_bests = torch.empty(n_rows, n_columns, device=device)
    kept_groups = torch.empty(n_rows, n_columns, dtype=torch.int32, device=device)
    row_bests = torch.empty(n_rows, device=device)
    row_masses = torch.empty(n_rows, dtype=torch.float64, device=device)
    row_n_kept = torch.empty(n_rows, dtype=torch.int32, device=device)
    row_lowest = torch.empty(n_rows, dtype=torch.int32, device=device)
    what = (logits, logits.stride(0), vocab_size)
    blocks = (block_bests, block_sums, block_ids, n_blocks)
    how = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.uniform)
    found = (kept_groups, n_groups, row_n_kept, row_lowest, row_bests, row_masses, tokens)
    _survey_kernel[(n_blocks, n_rows)](
        *what,
        sampling.temperature,
        *blocks,
        group_bests,
        n_groups,
        drawn=sampling.drawn,
        filtered=is_filtered,
        block_groups=_BLOCK_GROUPS,
        num_warps=4,
    )
    _choose_kernel[(n_rows,)](
        *what,
        *how,
        *blocks,
        group_bests,
        *found,
        drawn=sampling.drawn,
        filtered=is_filtered,
        low_bits=_LOW_BITS[logits.dtype],
        block=_BLOCK,
        blocks_padded=triton.next_power_of_2(n_blocks),
        groups_padded=triton.next_power_of_2(n_groups),
        num_warps=8,
    )
    if is_filtered:
        draw_filtered[(n_rows,)](
            *what,
            *how,
            *found,
            low_bits=_LOW_BITS[logits.dtype],
            num_warps=8,
        )
    return tokens


@triton.jit
def _survey_kernel(
    logits,
    row_stride,
    vocab_size,
    temperatures,
    block_bests,
    block_sums,
    block_ids,
    n_blocks,
    group_bests,
    n_groups,
    drawn: tl.constexpr,
    filtered: tl.constexpr,
    block_groups: tl.constexpr,
):
    """One block of one row: its best, the lowest id of that, the sum of its weights relative to
    it, and the best of each group. A NaN counts as infinity, so that its row has no token."""
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    groups = block * block_groups + tl.arange(0, block_groups)
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    values = tl.load(
        logits + row * row_stride + ids, mask=ids < vocab_size, other=-float("inf")
    ).to(tl.float32)
    values = tl.where(values != values, float("inf"), values)
    bests = tl.max(values, axis=1)
    best = tl.max(bests, axis=0)
    first = tl.min(tl.min(tl.where(values == best, ids, 2147483647), axis=1), axis=0)
    place = row * n_blocks + block
    tl.store(block_bests + place, best)
    tl.store(block_ids + place, first)
    if drawn:
        inverse = 1.0 / tl.maximum(tl.load(temperatures + row), 1e-30)
        # A block of minus infinities alone weighs nothing.
        relative = values - tl.where(best == -float("inf"), 0.0, best)
        tl.store(block_sums + place, tl.sum(tl.sum(tl.exp(relative * inverse), axis=1), axis=0))
    if filtered:
        tl.store(group_bests + row * n_groups + groups, bests, mask=groups < n_groups)


@triton.jit
def _choose_kernel(
    logits,
    row_stride,
    vocab_size,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    uniforms,
    block_bests,
    block_sums,
    block_ids,
    n_blocks,
    group_bests,
    kept_groups,
    n_groups,
    row_n_kept,
    row_lowest,
    row_bests,
    row_masses,
    tokens,
    drawn: tl.constexpr,
    filtered: tl.constexpr,
    low_bits: tl.constexpr,
    block: tl.constexpr,
    blocks_padded: tl.constexpr,
    groups_padded: tl.constexpr,
):
    """One row: its token, or, where filters concern it, which groups can matter to them."""
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, blocks_padded)
    is_block = blocks < n_blocks
    bests = tl.load(block_bests + row * n_blocks + blocks, mask=is_block, other=-float("inf"))
    firsts = tl.load(block_ids + row * n_blocks + blocks, mask=is_block, other=2147483647)
    best = tl.max(bests, axis=0)
    is_finite = (best > -float("inf")) & (best < float("inf"))
    token = tl.where(is_finite, tl.min(tl.where(bests == best, firsts, 2147483647), axis=0), -1)
    n_kept = tl.full([], 0, tl.int32)
    if drawn:
        temperature = tl.load(temperatures + row)
        if is_finite & (temperature > 0.0):
            inverse = 1.0 / tl.maximum(temperature, 1e-30)
            sums = tl.load(block_sums + row * n_blocks + blocks, mask=is_block, other=0.0)
            shares = tl.exp((bests - best) * inverse)
            masses = shares.to(tl.float64) * sums.to(tl.float64)
            running = tl.cumsum(masses, axis=0)
            mass = tl.max(running, axis=0)
            target = tl.load(uniforms + row) * mass
            chosen = first_beyond(running, masses, target, blocks)
            before = tl.max(tl.where(blocks < chosen, running, 0.0), axis=0)
            block_best = tl.max(tl.where(blocks == chosen, bests, -float("inf")), axis=0)
            share = tl.max(tl.where(blocks == chosen, shares, 0.0), axis=0)
            ids = chosen * block + tl.arange(0, block)
            values = tl.load(
                logits + row * row_stride + ids, mask=ids < vocab_size, other=-float("inf")
            ).to(tl.float32)
            weights = tl.exp((values - block_best) * inverse).to(tl.float64) * share.to(tl.float64)
            token = first_beyond(before + tl.cumsum(weights, axis=0), weights, target, ids)
            if filtered:
                top_k = tl.load(top_ks + row)
                top_p = tl.load(top_ps + row)
                min_p = tl.load(min_ps + row)
                if ((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0) | (min_p > 0.0):
                    tl.store(row_bests + row, best)
                    tl.store(row_masses + row, mass)
                    n_kept, lowest = narrow(
                        group_bests + row * n_groups,
                        kept_groups + row * n_groups,
                        n_groups,
                        vocab_size,
                        best,
                        mass,
                        inverse,
                        top_k,
                        top_p,
                        min_p,
                        low_bits,
                        groups_padded,
                    )
                    tl.store(row_lowest + row, lowest)
    if filtered:
        tl.store(row_n_kept + row, n_kept)
    tl.store(tokens + row, token)
