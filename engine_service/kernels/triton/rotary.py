"""What happens to q, k and v between their projection and attention, in one launch: the norm of
each head where a family has it, rotary embedding (https://arxiv.org/abs/2104.09864) in the layout
of halves, and the store of K and V. What is in between stays float32."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

# Elements of half heads in a program: with 4 warps, 4 a thread.
_TILE = 512


def rotate_and_store(
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
    """Do as ``DeviceKernels.rotate_and_store`` says; q is written where it was, in ``qkv``."""
    n_tokens, n_all_heads, head_dim = qkv.shape
    n_kv_heads = k_cache.shape[2]
    n_heads = n_all_heads - 2 * n_kv_heads
    block_half = triton.next_power_of_2(head_dim // 2)
    block_heads = min(max(_TILE // block_half, 1), triton.next_power_of_2(n_all_heads))
    _rotate_kernel[(n_tokens, triton.cdiv(n_all_heads, block_heads))](
        qkv,
        qkv.stride(0),
        qkv.stride(1),
        rotary,
        rotary.stride(0),
        positions,
        slots,
        k_cache,
        *k_cache.stride()[:3],
        v_cache,
        *v_cache.stride()[:3],
        # A missing norm's pointer is not read.
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        n_heads,
        n_kv_heads,
        has_q_norm=q_norm is not None,
        has_k_norm=k_norm is not None,
        block_size=k_cache.shape[1],
        half=head_dim // 2,
        block_half=block_half,
        block_heads=block_heads,
        num_warps=4 if block_heads * block_half >= 256 else 1,
    )
    return qkv[:, :n_heads]


# Numbers of tokens begin anywhere in a step's: their alignment must not compile a kernel anew.
@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_kernel(
    qkv,
    qkv_stride,
    qkv_head_stride,
    rotary,
    rotary_stride,
    positions,
    slots,
    k_cache,
    k_block_stride,
    k_place_stride,
    k_head_stride,
    v_cache,
    v_block_stride,
    v_place_stride,
    v_head_stride,
    q_norm,
    k_norm,
    eps,
    n_heads,
    n_kv_heads,
    has_q_norm: tl.constexpr,
    has_k_norm: tl.constexpr,
    block_size: tl.constexpr,
    half: tl.constexpr,
    block_half: tl.constexpr,
    block_heads: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    # 64 bits: a cache's strides may be of any size.
    heads = (tl.program_id(1) * block_heads + tl.arange(0, block_heads)).to(tl.int64)[:, None]
    columns = tl.arange(0, block_half)
    is_column = columns < half
    inside = (heads < n_heads + 2 * n_kv_heads) & is_column[None, :]
    is_q = heads < n_heads
    is_v = heads >= n_heads + n_kv_heads
    is_k = (heads >= n_heads) & (heads < n_heads + n_kv_heads)

    places = qkv + token * qkv_stride + heads * qkv_head_stride + columns[None, :]
    first = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(places + half, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots + token)
    angles = rotary + tl.load(positions + token).to(tl.int64) * rotary_stride + columns
    cos = tl.load(angles, mask=is_column, other=0.0)[None, :]
    sin = tl.load(angles + half, mask=is_column, other=0.0)[None, :]

    squares = tl.sum(first * first + second * second, axis=1) / (2 * half)
    rate = tl.rsqrt(squares + eps)[:, None]
    if has_q_norm:
        normed_first, normed_second = _normed(first, second, rate, q_norm, columns, half)
        first = tl.where(is_q, normed_first, first)
        second = tl.where(is_q, normed_second, second)
    if has_k_norm:
        normed_first, normed_second = _normed(first, second, rate, k_norm, columns, half)
        first = tl.where(is_k, normed_first, first)
        second = tl.where(is_k, normed_second, second)
    # What q and k become is rounded as the projection's output is; v stays as it is.
    turned_first = tl.where(is_v, first, first * cos - second * sin).to(qkv.dtype.element_ty)
    turned_second = tl.where(is_v, second, second * cos + first * sin).to(qkv.dtype.element_ty)

    tl.store(places, turned_first, mask=inside & is_q)
    tl.store(places + half, turned_second, mask=inside & is_q)
    block = (slot // block_size).to(tl.int64)
    place = (slot % block_size).to(tl.int64)
    k_places = k_cache + block * k_block_stride + place * k_place_stride
    k_places += (heads - n_heads) * k_head_stride + columns[None, :]
    v_places = v_cache + block * v_block_stride + place * v_place_stride
    v_places += (heads - n_heads - n_kv_heads) * v_head_stride + columns[None, :]
    is_kept = inside & (slot >= 0)
    k_first = turned_first.to(k_cache.dtype.element_ty)
    k_second = turned_second.to(k_cache.dtype.element_ty)
    tl.store(k_places, k_first, mask=is_kept & is_k)
    tl.store(k_places + half, k_second, mask=is_kept & is_k)
    v_first = turned_first.to(v_cache.dtype.element_ty)
    v_second = turned_second.to(v_cache.dtype.element_ty)
    tl.store(v_places, v_first, mask=is_kept & is_v)
    tl.store(v_places + half, v_second, mask=is_kept & is_v)


@triton.jit
def _normed(first, second, rate, weight, columns, half: tl.constexpr):
    """Return both halves of each head, normed: ``rate`` is 1 over their root mean square."""
    is_column = columns < half
    first_scale = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    second_scale = tl.load(weight + half + columns, mask=is_column, other=0.0).to(tl.float32)
    return first * rate * first_scale[None, :], second * rate * second_scale[None, :]
