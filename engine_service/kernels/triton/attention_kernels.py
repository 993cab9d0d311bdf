# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803, N806 (what the compiler knows is written in capitals)
"""What runs on the device for ``attention``: one pass over a part of a row's context, and the sum
of such parts. Triton's language carries no types; the faces with types are in ``attention``."""

import triton
import triton.language as tl


@triton.jit
def _attend_tile(
    best,
    total,
    acc,
    q,
    k_head,
    v_head,
    table,
    first_key,
    end,
    position,
    scale,
    k_block_stride,
    k_token_stride,
    v_block_stride,
    v_token_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take one tile of keys into the running softmax: ``best`` and ``total`` (QUERY_ROWS,), ``acc``
    (QUERY_ROWS, padded head). Without MASKED every row sees every key of the tile."""
    keys = first_key + tl.arange(0, KV_TOKENS)
    if MASKED:
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=keys < end, other=0)
    else:
        blocks = tl.load(table + keys // BLOCK_SIZE)
    blocks = blocks.to(tl.int64)
    k_places = blocks * k_block_stride + (keys % BLOCK_SIZE) * k_token_stride
    v_places = blocks * v_block_stride + (keys % BLOCK_SIZE) * v_token_stride
    dims = tl.arange(0, q.shape[1])
    k_mask = (dims < HEAD_DIM)[:, None]
    v_mask = (dims < HEAD_DIM)[None, :]
    if MASKED:
        k_mask = k_mask & (keys < end)[None, :]
        v_mask = v_mask & (keys < end)[:, None]

    k = tl.load(k_head + k_places[None, :] + dims[:, None], mask=k_mask, other=0.0)
    scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(keys[None, :] <= position[:, None], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    shift = new_best
    if MASKED:
        # A row may see none of the keys so far: -inf less -inf is no number.
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(best - shift)
    total = total * decay + tl.sum(weights, 1)

    v = tl.load(v_head + v_places[:, None] + dims[None, :], mask=v_mask, other=0.0)
    acc = tl.dot(
        weights.to(q.dtype), v.to(q.dtype), acc=acc * decay[:, None], input_precision="ieee"
    )
    return new_best, total, acc


# Row pointers begin anywhere in a step's rows: their alignment must not compile a kernel anew.
@triton.jit(do_not_specialize_on_alignment=["block_tables", "context_lens", "query_starts"])
def attend_kernel(
    q,
    k_cache,
    v_cache,
    out,
    log_sums,
    block_tables,
    context_lens,
    query_starts,
    scale,
    q_token_stride,
    q_head_stride,
    k_block_stride,
    k_token_stride,
    k_head_stride,
    v_block_stride,
    v_token_stride,
    v_head_stride,
    table_stride,
    N_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    KV_TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Flash attention (Dao 2023, arXiv 2307.08691) of one tile of a row's new tokens, one K/V head
    and one part of the context.

    Grid: (n_query_tiles * N_KV_HEADS, n_rows, n_splits); neighbours read neighbouring heads of the
    same tokens. A tile's rows are (token, query head of the K/V head), so that K and V are read
    once for all of them. ``scale`` counts in base 2.

    Without SPLIT ``out`` is (n_tokens, n_heads, HEAD_DIM). With it (flash-decoding) it is float32
    (n_tokens, n_heads, n_splits, HEAD_DIM), and ``log_sums`` (n_tokens, n_heads, n_splits) has
    log2 of each part's sum, -inf where a part is empty, and then its ``out`` stays unwritten.
    """
    TOKENS: tl.constexpr = QUERY_ROWS // GROUP
    row = tl.program_id(1)
    split = tl.program_id(2)
    n_splits = tl.num_programs(2)
    kv_head = tl.program_id(0) % N_KV_HEADS
    # The last tokens see most: their tiles start first.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // N_KV_HEADS
    context_len = tl.load(context_lens + row)
    if query_starts is None:
        start = row
        n_new = 1
    else:
        start = tl.load(query_starts + row)
        n_new = tl.load(query_starts + row + 1) - start
    first_token = tile * TOKENS
    if first_token >= n_new:
        return

    places = tl.arange(0, QUERY_ROWS)
    tokens = first_token + places // GROUP
    heads = kv_head * GROUP + places % GROUP
    is_query = (places < TOKENS * GROUP) & (tokens < n_new)
    first_position = context_len - n_new + first_token
    position = first_position + places // GROUP
    n_heads = N_KV_HEADS * GROUP
    outputs = ((start + tokens).to(tl.int64) * n_heads + heads) * n_splits + split

    end = tl.maximum(tl.minimum(first_position + TOKENS, context_len), 0)
    split_len = tl.cdiv(tl.cdiv(end, KV_TOKENS), n_splits) * KV_TOKENS
    begin = tl.minimum(split * split_len, end)
    end = tl.minimum(begin + split_len, end)
    if SPLIT:  # noqa: SIM102 (the compiler decides the one, the device the other)
        if begin >= end:
            nothing = tl.full((QUERY_ROWS,), float("-inf"), tl.float32)
            tl.store(log_sums + outputs, nothing, mask=is_query)
            return

    dims = tl.arange(0, PADDED_DIM)
    out_mask = is_query[:, None] & (dims < HEAD_DIM)[None, :]
    q_places = (start + tokens).to(tl.int64) * q_token_stride + heads * q_head_stride
    q_tile = tl.load(q + q_places[:, None] + dims[None, :], mask=out_mask, other=0.0)
    k_head = k_cache + kv_head * k_head_stride
    v_head = v_cache + kv_head * v_head_stride
    table = block_tables + row.to(tl.int64) * table_stride

    best = tl.full((QUERY_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((QUERY_ROWS,), tl.float32)
    acc = tl.zeros((QUERY_ROWS, PADDED_DIM), tl.float32)
    masked_from = begin
    if query_starts is not None:
        # Below the diagonal nothing needs a mask. One token has no diagonal: it takes one loop.
        n_seen = tl.maximum(tl.minimum(first_position + 1, end) - begin, 0)
        masked_from = begin + n_seen // KV_TOKENS * KV_TOKENS
        for first_key in range(begin, masked_from, KV_TOKENS):
            best, total, acc = _attend_tile(
                best,
                total,
                acc,
                q_tile,
                k_head,
                v_head,
                table,
                first_key,
                end,
                position,
                scale,
                k_block_stride,
                k_token_stride,
                v_block_stride,
                v_token_stride,
                HEAD_DIM=HEAD_DIM,
                BLOCK_SIZE=BLOCK_SIZE,
                KV_TOKENS=KV_TOKENS,
                MASKED=False,
            )
    for first_key in range(masked_from, end, KV_TOKENS):
        best, total, acc = _attend_tile(
            best,
            total,
            acc,
            q_tile,
            k_head,
            v_head,
            table,
            first_key,
            end,
            position,
            scale,
            k_block_stride,
            k_token_stride,
            v_block_stride,
            v_token_stride,
            HEAD_DIM=HEAD_DIM,
            BLOCK_SIZE=BLOCK_SIZE,
            KV_TOKENS=KV_TOKENS,
            MASKED=True,
        )

    divisor = tl.where(total > 0, total, 1.0)
    result = (acc / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(out + outputs[:, None] * HEAD_DIM + dims[None, :], result, mask=out_mask)
    if SPLIT:
        tl.store(log_sums + outputs, best + tl.log2(total), mask=is_query)


@triton.jit(do_not_specialize=["n_splits"])
def combine_kernel(
    parts,
    log_sums,
    out,
    n_splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Weigh the parts of one token's head by their sums. Grid: (n_tokens * n_heads,)."""
    head = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, MAX_SPLITS)
    dims = tl.arange(0, PADDED_DIM)
    log_sum = tl.load(
        log_sums + head * n_splits + splits, mask=splits < n_splits, other=float("-inf")
    )
    best = tl.max(log_sum, 0)
    # Without a context there is no part at all.
    weights = tl.exp2(log_sum - tl.where(best == float("-inf"), 0.0, best))
    total = tl.sum(weights, 0)
    # Loaded without a look at the weights, which would cost one more wait for memory; what no part
    # has written is left out, whatever it is.
    part = tl.load(
        parts + (head * n_splits + splits)[:, None] * HEAD_DIM + dims[None, :],
        mask=(splits < n_splits)[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    part = tl.where(weights[:, None] > 0, part * weights[:, None], 0.0)
    result = tl.sum(part, 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + head * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
