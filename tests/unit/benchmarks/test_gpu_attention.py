"""What stands in for flash-attn under nano-vllm computes attention."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.flash_attn_shim import check
from benchmarks.gpu.paged_attention import PagesAsSequences, attend_plainly, gathered


def plain_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    is_causal: bool,
    scale: float,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As torch's FlashAttention: sequences at any offset; zeros and infinity for an empty one."""
    n_groups = q.shape[1] // k.shape[1]
    used = starts_k.diff() if seqused_k is None else seqused_k
    out = torch.zeros_like(q)
    lse = torch.full((q.shape[1], len(q)), float("inf"))
    for i, n_keys in enumerate(used.tolist()):
        start, end, first = int(starts_q[i]), int(starts_q[i + 1]), int(starts_k[i])
        assert end - start <= max_q
        assert n_keys <= max_k
        if not n_keys:
            continue
        keys, values = (
            x[first : first + n_keys].float().repeat_interleave(n_groups, dim=1) for x in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[start:end].float(), keys) * scale
        if is_causal:
            newest = torch.arange(n_keys - (end - start), n_keys)[:, None]
            scores = scores.masked_fill(torch.arange(n_keys) > newest, float("-inf"))
        out[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
        lse[:, start:end] = scores.logsumexp(-1)
    return out, lse


def test_pages_as_sequences_are_attention() -> None:
    check(PagesAsSequences(plain_varlen), device="cpu")


@pytest.mark.parametrize("broken", ["offset", "scale"])
def test_the_check_finds_a_fault(broken: str) -> None:
    def faulty(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if broken == "scale":
            kwargs["scale"] *= 1.5
        else:
            args = (*args[:4], args[4].roll(1), *args[5:])
        return plain_varlen(*args, **kwargs)

    with pytest.raises(RuntimeError, match="is wrong by"):
        check(PagesAsSequences(faulty), device="cpu")


def test_plain_attention_is_torchs() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 4, 2, 8).unbind()
    q = torch.randn(5, 4, 8)
    table, lengths = torch.tensor([[2, 0]]), torch.tensor([7])
    found = attend_plainly(
        q, starts_q=torch.tensor([0, 5]), k=k, v=v, table=table, lengths=lengths, scale=0.3
    )
    keys, values = (
        gathered(x, lengths=lengths, table=table).transpose(0, 1).unsqueeze(0) for x in (k, v)
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys,
        values,
        attn_mask=torch.ones(5, 7, dtype=torch.bool).tril(2),
        scale=0.3,
        enable_gqa=True,
    )
    assert torch.allclose(found, wanted[0].transpose(0, 1), atol=1e-5)
