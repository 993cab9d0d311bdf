"""The reference kernels against plain definitions and against transformers' own layers."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from engine_service.json_fields import JsonFields
from engine_service.kernels import onednn, reference
from engine_service.kernels.reference import AttentionRow
from engine_service.layers.rotary_embedding import RotaryEmbedding, rotary_frequencies
from engine_service.rotary import read_rotary

HEAD_DIM, N_KV_HEADS, BLOCK_SIZE, N_BLOCKS = 8, 2, 4, 64
DTYPES = (torch.float32, torch.bfloat16)


def plain_attention(q: Tensor, kv: Tensor) -> Tensor:
    """One row in float64; q are the last tokens of a context whose K and V are ``kv``."""
    n_new, n_heads, _ = q.shape
    context_len = kv.shape[0]
    keys, values = kv.double().repeat_interleave(n_heads // kv.shape[2], dim=2).unbind(1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * HEAD_DIM**-0.5
    allowed = torch.arange(context_len) <= torch.arange(context_len - n_new, context_len)[:, None]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values).reshape(n_new, -1)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=5),
    group=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_paged_attention_equals_plain_attention(
    shapes: list[tuple[int, int]], group: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # What other sequences left in the pool must not matter, so it is large.
    cache = torch.full((N_BLOCKS, BLOCK_SIZE, 2, N_KV_HEADS, HEAD_DIM), 1e4)
    free = random.Random(seed).sample(range(N_BLOCKS), N_BLOCKS)
    shapes = sorted(shapes, key=lambda shape: (shape[0] > 1, sum(shape)))
    rows, queries, expected = [], [], []
    for n_new, n_before in shapes:
        context_len = n_new + n_before
        table = [free.pop() for _ in range(-(-context_len // BLOCK_SIZE))]
        kv = torch.randn(context_len, 2, N_KV_HEADS, HEAD_DIM, generator=generator)
        slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(context_len)]
        reference.store_kv(kv, cache=cache, slots=torch.tensor(slots))
        q = torch.randn(n_new, N_KV_HEADS * group, HEAD_DIM, generator=generator)
        rows.append(AttentionRow(n_new=n_new, context_len=context_len, block_table=table))
        queries.append(q)
        expected.append(plain_attention(q, kv))
    groups = reference.plan_attention(rows, block_size=BLOCK_SIZE, dtype=torch.float32)
    attended = reference.paged_attention(
        torch.cat(queries), cache=cache, groups=groups, scale=HEAD_DIM**-0.5
    )
    torch.testing.assert_close(attended.double(), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_rows_of_very_different_length_are_padded_apart() -> None:
    lengths = (3, 4, *(30,) * 40, 400, 500)
    rows = [
        AttentionRow(n_new=1, context_len=n, block_table=list(range(-(-n // BLOCK_SIZE))))
        for n in lengths
    ]
    groups = reference.plan_attention(rows, block_size=BLOCK_SIZE, dtype=torch.float32)
    assert [(g.tokens.start, g.tokens.stop, g.context_len) for g in groups] == [
        (0, 42, 30),
        (42, 44, 500),
    ]


def test_store_kv_touches_its_slots_only() -> None:
    cache = torch.zeros(3, BLOCK_SIZE, 2, N_KV_HEADS, HEAD_DIM)
    kv = torch.ones(2, 2, N_KV_HEADS, HEAD_DIM)
    reference.store_kv(kv, cache=cache, slots=torch.tensor([5, 11]))
    written = cache.view(12, -1).ne(0).all(dim=1)
    assert written.nonzero().flatten().tolist() == [5, 11]
    assert cache.sum().item() == kv.sum().item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_equals_transformers(dtype: torch.dtype) -> None:
    x = (torch.randn(5, 48) * 3).to(dtype)
    theirs = LlamaRMSNorm(48, eps=1e-5).to(dtype)
    theirs.weight.data = torch.randn(48).to(dtype)
    ours = reference.rms_norm(x, weight=theirs.weight.data, eps=1e-5)
    torch.testing.assert_close(ours, theirs(x))


ROTARY: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn, everything given": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, its own attention factor, a ramp without length": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 2,
        "attention_factor": 0.9,
    },
}


@pytest.mark.parametrize("parameters", ROTARY.values(), ids=ROTARY.keys())
@pytest.mark.parametrize("head_dim", [8, 64])
def test_rotary_embedding_equals_transformers(parameters: dict[str, Any], head_dim: int) -> None:
    parameters = {"rope_theta": 100_000.0, **parameters}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters=dict(parameters),
    )
    theirs = LlamaRotaryEmbedding(config)
    fields = {"rope_parameters": parameters, "max_position_embeddings": 4096}
    described = read_rotary(JsonFields(fields, where="config.json"))
    assert torch.equal(rotary_frequencies(described, head_dim=head_dim), theirs.inv_freq)

    positions = torch.tensor([0, 1, 7, 500, 4095])
    q = torch.randn(5, 4, head_dim)
    cos, sin = theirs(q, positions[None])
    expected, _ = apply_rotary_pos_emb(q.transpose(0, 1)[None], q.transpose(0, 1)[None], cos, sin)
    rotary = RotaryEmbedding(described, head_dim=head_dim, max_model_len=4096, dtype=torch.float32)
    our_cos, our_sin = rotary(positions)
    ours = reference.rotate(q, cos=our_cos, sin=our_sin)
    torch.testing.assert_close(ours, expected[0].transpose(0, 1), rtol=1e-6, atol=1e-6)


def test_swiglu_equals_transformers() -> None:
    mlp = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=24))
    x = torch.randn(5, 32)
    with torch.no_grad():
        gate_up = functional.linear(x, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
        ours = functional.linear(reference.swiglu(gate_up), mlp.down_proj.weight)
        torch.testing.assert_close(ours, mlp(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 3, 32, 100])
def test_packed_product_equals_reference(dtype: torch.dtype, n_tokens: int) -> None:
    if not onednn.supports(dtype):
        pytest.skip(f"this machine's oneDNN lacks {dtype}")
    weight, x = torch.randn(96, 64).to(dtype), torch.randn(n_tokens, 64).to(dtype)
    ours = onednn.linear(x, packed=onednn.pack(weight))
    torch.testing.assert_close(ours, reference.linear(x, weight=weight), rtol=1e-2, atol=1e-4)
    bias = torch.randn(96).to(dtype)
    ours = onednn.linear(x, packed=onednn.pack(weight), bias=bias)
    expected = reference.linear(x, weight=weight, bias=bias)
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-4)
    assert not torch.equal(expected, reference.linear(x, weight=weight))
