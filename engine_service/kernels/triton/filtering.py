"""Draws from what top_k, top_p and min_p leave of a row of logits, without sorting it.

The cutoff is found by bisection: how many tokens, or how much of the probability, stands above a
value is a sum, and a sum needs no order (as FlashInfer's sampling does by rejection,
https://flashinfer.ai/2025/03/10/sampling.html; here the cutoff is found exactly, so that one
number a token suffices and ties fall to the lower ids). Values are compared as integers of the same
order, of which there are few. Each sum looks only at groups of tokens whose best is not below a
bound that the bests of the groups give: nearly always a few dozen of thousands.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

# Tokens of a group, which is looked at or left out whole, and groups that are looked at at once.
GROUP = tl.constexpr(64)
TILE_GROUPS = tl.constexpr(64)


@triton.jit
def first_beyond(running, weights, target, places):
    """Return the first of ascending ``places`` that has a weight and at which the running sum is
    beyond ``target``; where rounding leaves none, the last that has a weight."""
    has_weight = weights > 0.0
    first = tl.min(tl.where(has_weight & (running > target), places, 2147483647), axis=0)
    return tl.minimum(first, tl.max(tl.where(has_weight, places, -1), axis=0))


@triton.jit
def _keys(values, low_bits: tl.constexpr):
    """Return integers in the order of float32 ``values``, without bits that are the same in all."""
    # Minus zero is no less than zero.
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> low_bits


@triton.jit
def narrow(
    group_bests,
    kept_groups,
    n_groups,
    vocab_size,
    best,
    mass,
    inverse,
    top_k,
    top_p,
    min_p,
    low_bits: tl.constexpr,
    groups_padded: tl.constexpr,
):
    """List the groups of a row that can matter; return how many, and a key that the cutoff of
    top_k, or else of top_p, is not below.

    The bests of groups are tokens themselves: where k of them reach a value, the k-th best of all
    does, and where they alone have top_p of the whole, so much stands above the cutoff.
    """
    groups = tl.arange(0, groups_padded)
    is_group = groups < n_groups
    bests = tl.load(group_bests + groups, mask=is_group, other=-float("inf"))
    weights = tl.exp((bests - best) * inverse)
    prefixes = tl.where(is_group, _keys(bests, 16), -65536)
    by_rank = (top_k > 0) & (top_k < vocab_size)
    by_share = top_p < 1.0
    # Sums that were rounded otherwise must not make the bound too high.
    share = tl.where(by_share, (mass * top_p * 1.0001).to(tl.float32), float("inf"))
    limit = tl.where(by_rank, top_k.to(tl.float32), share)
    amounts = tl.where(by_rank, 1.0, weights)
    low = tl.full([], -32768, tl.int32)
    high = _keys(best, 16)
    while low < high:
        middle = (low + high) >> 1
        is_enough = tl.sum(tl.where(prefixes > middle, amounts, 0.0), axis=0) < limit
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    # What top_p is a share of includes tokens that min_p leaves out after it.
    is_kept = is_group & (prefixes >= low) & ((weights >= min_p) | (by_rank & by_share))
    counts = is_kept.to(tl.int32)
    tl.store(kept_groups + tl.cumsum(counts, axis=0) - 1, groups, mask=is_kept)
    return tl.sum(counts, axis=0), low << (16 - low_bits)


@triton.jit
def _load_tile(logits, vocab_size, kept_groups, n_kept, tile):
    """Return (TILE_GROUPS, GROUP) values of kept groups, minus infinity where there is none."""
    places = tile * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
    groups = tl.load(kept_groups + places, mask=places < n_kept, other=0)
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_token = (places < n_kept)[:, None] & (ids < vocab_size)
    return tl.load(logits + ids, mask=is_token, other=-float("inf")).to(tl.float32)


@triton.jit
def _weigh(logits, vocab_size, kept_groups, n_kept, best, inverse, key, low_bits: tl.constexpr):
    """Return how many tokens have a key above ``key`` and what they weigh together, how many have
    this key and what one of them weighs; all of it in float64."""
    n_above = tl.zeros((TILE_GROUPS,), tl.float32)
    above = tl.zeros((TILE_GROUPS,), tl.float64)
    n_equal = tl.zeros((TILE_GROUPS,), tl.float32)
    weight = tl.zeros((TILE_GROUPS,), tl.float32)
    for tile in range(tl.cdiv(n_kept, TILE_GROUPS)):
        values = _load_tile(logits, vocab_size, kept_groups, n_kept, tile)
        keys = _keys(values, low_bits)
        weights = tl.exp((values - best) * inverse)
        n_above += tl.sum(tl.where(keys > key, 1.0, 0.0), axis=1)
        above += tl.sum(tl.where(keys > key, weights, 0.0), axis=1).to(tl.float64)
        n_equal += tl.sum(tl.where(keys == key, 1.0, 0.0), axis=1)
        weight = tl.maximum(weight, tl.max(tl.where(keys == key, weights, 0.0), axis=1))
    return (
        tl.sum(n_above, axis=0).to(tl.float64),
        tl.sum(above, axis=0),
        tl.sum(n_equal, axis=0).to(tl.float64),
        tl.max(weight, axis=0).to(tl.float64),
    )


@triton.jit
def _cutoff(
    logits,
    vocab_size,
    kept_groups,
    n_kept,
    best,
    inverse,
    lowest,
    limit,
    by_weight: tl.constexpr,
    low_bits: tl.constexpr,
):
    """Return the lowest key, not below ``lowest``, above which there is less than ``limit``: that
    of the last token that such a limit keeps; and what ``_weigh`` says of it."""
    low = lowest
    high = _keys(best, low_bits)
    while low < high:
        # Their sum may be more than 32 bits hold.
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        n_above, above, _, _ = _weigh(
            logits, vocab_size, kept_groups, n_kept, best, inverse, middle, low_bits
        )
        if by_weight:
            is_enough = above < limit
        else:
            is_enough = n_above < limit
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    n_above, above, n_equal, weight = _weigh(
        logits, vocab_size, kept_groups, n_kept, best, inverse, low, low_bits
    )
    return low, n_above, above, n_equal, weight


@triton.jit
def _tile_mass(
    logits,
    vocab_size,
    kept_groups,
    n_kept,
    best,
    inverse,
    tile,
    key,
    n_ties_left,
    min_p,
    low_bits: tl.constexpr,
):
    """Return what a tile's tokens weigh that stay, and how many of them have the key ``key``."""
    values = _load_tile(logits, vocab_size, kept_groups, n_kept, tile)
    keys = _keys(values, low_bits)
    weights = tl.exp((values - best) * inverse)
    weights = tl.where(weights >= min_p, weights, 0.0)
    above = tl.sum(tl.sum(tl.where(keys > key, weights, 0.0), axis=1), axis=0)
    weight = tl.max(tl.max(tl.where(keys == key, weights, 0.0), axis=1), axis=0)
    n_equal = tl.sum(tl.sum((keys == key).to(tl.int32), axis=1), axis=0)
    n_staying = tl.minimum(n_equal, tl.maximum(n_ties_left, 0))
    return above.to(tl.float64) + n_staying.to(tl.float64) * weight.to(tl.float64), n_equal


@triton.jit
def _draw(
    logits,
    vocab_size,
    kept_groups,
    n_kept,
    best,
    inverse,
    key,
    n_ties,
    min_p,
    uniform,
    low_bits: tl.constexpr,
):
    """Return the token at which the running sum of what stays passes ``uniform`` of the whole: of
    the key ``key`` the first ``n_ties`` stay, and all above it that ``min_p`` lets."""
    n_tiles = tl.cdiv(n_kept, TILE_GROUPS)
    mass = tl.full([], 0.0, tl.float64)
    target = tl.full([], 0.0, tl.float64)
    chosen = tl.full([], 0, tl.int32)
    before = tl.full([], 0.0, tl.float64)
    n_seen = tl.full([], 0, tl.int32)
    n_before = tl.full([], 0, tl.int32)
    # Twice over the tiles: for the whole, then for the last tile that weighs anything up to the
    # one where the sum is beyond the target.
    for step in range(2 * n_tiles):
        tile = step % n_tiles
        if step == n_tiles:
            target = uniform * mass
            mass = mass * 0.0
            n_seen = n_seen * 0
        tile_mass, n_equal = _tile_mass(
            logits,
            vocab_size,
            kept_groups,
            n_kept,
            best,
            inverse,
            tile,
            key,
            n_ties - n_seen,
            min_p,
            low_bits,
        )
        is_later = (step >= n_tiles) & (tile_mass > 0.0) & (mass <= target)
        chosen = tl.where(is_later, tile, chosen)
        before = tl.where(is_later, mass, before)
        n_before = tl.where(is_later, n_seen, n_before)
        mass += tile_mass
        n_seen += n_equal
    within = tl.arange(0, TILE_GROUPS * GROUP)
    places = chosen * TILE_GROUPS + within // GROUP
    groups = tl.load(kept_groups + places, mask=places < n_kept, other=0)
    ids = groups * GROUP + within % GROUP
    is_token = (places < n_kept) & (ids < vocab_size)
    values = tl.load(logits + ids, mask=is_token, other=-float("inf")).to(tl.float32)
    keys = _keys(values, low_bits)
    rank = n_before + tl.cumsum((keys == key).to(tl.int32), axis=0)
    weights = tl.exp((values - best) * inverse)
    stays = ((keys > key) | ((keys == key) & (rank <= n_ties))) & (weights >= min_p)
    weights = tl.where(stays, weights, 0.0).to(tl.float64)
    return first_beyond(before + tl.cumsum(weights, axis=0), weights, target, ids)


@triton.jit
def draw_filtered(
    logits,
    row_stride,
    vocab_size,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    uniforms,
    kept_groups,
    n_groups,
    row_n_kept,
    row_lowest,
    row_bests,
    row_masses,
    tokens,
    low_bits: tl.constexpr,
):
    """One row: its token, where filters concern it."""
    row = tl.program_id(0).to(tl.int64)
    n_kept = tl.load(row_n_kept + row)
    if n_kept > 0:
        row_logits = logits + row * row_stride
        row_groups = kept_groups + row * n_groups
        best = tl.load(row_bests + row)
        inverse = 1.0 / tl.maximum(tl.load(temperatures + row), 1e-30)
        top_k = tl.load(top_ks + row)
        top_p = tl.load(top_ps + row)
        mass = tl.load(row_masses + row)
        key = tl.load(row_lowest + row)
        n_ties = tl.full([], 2147483647, tl.int32)
        if (top_k > 0) & (top_k < vocab_size):
            key, n_above, above, n_equal, weight = _cutoff(
                row_logits,
                vocab_size,
                row_groups,
                n_kept,
                best,
                inverse,
                key,
                top_k.to(tl.float64),
                False,
                low_bits,
            )
            n_ties = top_k - n_above.to(tl.int32)
            mass = above + tl.minimum(n_ties.to(tl.float64), n_equal) * weight
        if top_p < 1.0:
            limit = mass * top_p
            ranked = key
            key, n_above, above, n_equal, weight = _cutoff(
                row_logits,
                vocab_size,
                row_groups,
                n_kept,
                best,
                inverse,
                key,
                limit,
                True,
                low_bits,
            )
            # So many that the ones before each are less than the limit, and always the best one.
            needed = tl.minimum((limit - above) / tl.maximum(weight, 1e-30), 1e9)
            n_needed = needed.to(tl.int32)
            n_needed = tl.maximum(n_needed + (n_needed.to(tl.float64) < needed).to(tl.int32), 1)
            n_ties = tl.where(key == ranked, tl.minimum(n_needed, n_ties), n_needed)
        token = _draw(
            row_logits,
            vocab_size,
            row_groups,
            n_kept,
            best,
            inverse,
            key,
            n_ties,
            tl.load(min_ps + row),
            tl.load(uniforms + row),
            low_bits,
        )
        tl.store(tokens + row, token)
