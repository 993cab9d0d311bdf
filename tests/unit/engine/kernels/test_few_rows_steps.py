"""Steps of few rows give the tokens that other steps give, on tiny random models of each family."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.kernels.device import DeviceKernels, TorchKernels
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.layers.attention import Attention
from engine_service.layers.decoder import Decoder, DecoderLayer
from engine_service.layers.embedding import Embedding
from engine_service.layers.feed_forward import FeedForward
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.rotary_embedding import RotaryEmbedding
from engine_service.rotary import RotaryConfig
from engine_service.runner.device_model import DeviceModel, KVPool, PoolShape

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EPS = 1e-5
HIDDEN, INNER, VOCAB = 16, 24, 48
BLOCK_SIZE, MAX_BLOCKS = 16, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    qkv_bias: bool = False
    qk_norm: bool = False
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 8


FAMILIES = {
    "llama": Family(),
    "mistral": Family(n_kv_heads=1, head_dim=10),
    "qwen2": Family(qkv_bias=True, n_heads=2, n_kv_heads=1),
    "qwen3": Family(qk_norm=True, n_heads=2, head_dim=12),
}
SHORT = ("qwen2", "qwen3")


class WithoutFewRows(TorchKernels):
    def max_few_rows(self, *, group: int, head_dim: int) -> int:
        return 0


def make_model(family: Family, *, seed: int = 0) -> Decoder:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, around: float = 0.0) -> Tensor:
        return (around + torch.randn(shape, generator=generator) * 0.2).to(DEVICE)

    def norm(size: int) -> RMSNorm:
        return RMSNorm(weight=normal(size, around=1.0), eps=EPS)

    def layer() -> DecoderLayer:
        n_rows = (family.n_heads + 2 * family.n_kv_heads) * family.head_dim
        bias = normal(n_rows) if family.qkv_bias else None
        attention = Attention(
            qkv=Linear(normal(n_rows, HIDDEN), bias=bias),
            output=Linear(normal(HIDDEN, family.n_heads * family.head_dim)),
            n_heads=family.n_heads,
            n_kv_heads=family.n_kv_heads,
            head_dim=family.head_dim,
            q_norm=norm(family.head_dim) if family.qk_norm else None,
            k_norm=norm(family.head_dim) if family.qk_norm else None,
        )
        return DecoderLayer(
            attention_norm=norm(HIDDEN),
            attention=attention,
            feed_forward_norm=norm(HIDDEN),
            feed_forward=FeedForward(
                gate_up=Linear(normal(2 * INNER, HIDDEN)), down=Linear(normal(HIDDEN, INNER))
            ),
        )

    return Decoder(
        embedding=Embedding(normal(VOCAB, HIDDEN)),
        layers=[layer() for _ in range(2)],
        norm=norm(HIDDEN),
        head=Linear(normal(VOCAB, HIDDEN)),
        rotary=RotaryEmbedding(
            RotaryConfig(theta=10_000.0),
            head_dim=family.head_dim,
            max_model_len=BLOCK_SIZE * MAX_BLOCKS,
            dtype=torch.float32,
        ),
    )


def device_model(family: Family, kernels: DeviceKernels, **options: Any) -> DeviceModel:
    model = DeviceModel(
        make_model(family),
        kernels=kernels,
        device=DEVICE,
        eps=EPS,
        max_rows=4,
        max_draws=4,
        max_blocks=MAX_BLOCKS,
        **options,
    )
    shape = PoolShape(
        n_layers=2,
        n_blocks=4 * MAX_BLOCKS,
        block_size=BLOCK_SIZE,
        n_kv_heads=family.n_kv_heads,
        head_dim=family.head_dim,
    )
    model.pool = KVPool(shape, dtype=torch.float32, device=DEVICE)
    return model


def greedy(model: DeviceModel, *, lengths: list[int], n_steps: int) -> tuple[list[Any], Tensor]:
    """Return the tokens of rows that grow from so many computed tokens; a row of length -1 is
    padding. And the logits of the last step."""
    tokens = [7 + i for i in range(len(lengths))]
    found = []
    for step in range(n_steps):
        positions = [n + step if n >= 0 else 0 for n in lengths]
        # Row i has every fourth block.
        blocks = [4 * (place // BLOCK_SIZE) + i for i, place in enumerate(positions)]
        pairs = list(zip(blocks, positions, lengths, strict=True))
        slots = [b * BLOCK_SIZE + p % BLOCK_SIZE if n >= 0 else -1 for b, p, n in pairs]
        table_rows = [i if n >= 0 else 4 for i, n in enumerate(lengths)]
        contexts = [p + 1 if n >= 0 else 0 for _, p, n in pairs]
        sources = [-1] * len(lengths)
        sections = (tokens, positions, slots, sources, table_rows, contexts)
        numbers = torch.tensor(sections, dtype=torch.int32).flatten().to(DEVICE)
        logits = model.decode(len(lengths), numbers=numbers)
        tokens = logits.argmax(dim=-1).tolist()
        found.append([token for token, n in zip(tokens, lengths, strict=True) if n >= 0])
    return found, logits[[n >= 0 for n in lengths]]


def cases() -> list[Any]:
    torch_cases = [(name, TorchKernels()) for name in FAMILIES]
    # The interpreter is slow: one family with norms of heads, and one with a bias.
    triton_cases = [(name, TritonKernels()) for name in (FAMILIES if ON_GPU else SHORT)]
    return [
        pytest.param(name, kernels, id=f"{name} {kernels.name}")
        for name, kernels in [*torch_cases, *triton_cases]
    ]


@pytest.mark.parametrize(("name", "kernels"), cases())
def test_tokens_are_those_of_other_steps(name: str, kernels: DeviceKernels) -> None:
    family = FAMILIES[name]
    lengths = [0, 14, -1]
    ours = device_model(family, kernels)
    assert ours._few_rows is not None
    other = device_model(family, WithoutFewRows())
    for model in (ours, other):
        assert model.pool is not None
        generator = torch.Generator().manual_seed(5)
        model.pool.tensor.copy_(torch.randn(model.pool.tensor.shape, generator=generator))
        for i in range(len(lengths)):
            model._tables[i] = torch.arange(MAX_BLOCKS) * 4 + i
    n_steps = 4 if ON_GPU or kernels.name == "torch" else 1
    tokens, logits = greedy(ours, lengths=lengths, n_steps=n_steps)
    expected, expected_logits = greedy(other, lengths=lengths, n_steps=n_steps)
    assert n_steps == 1 or len({token for step in expected for token in step}) > 2
    assert tokens == expected
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert ours.pool is not None and other.pool is not None
    torch.testing.assert_close(ours.pool.tensor, other.pool.tensor, rtol=1e-4, atol=1e-4)


def test_steps_of_more_rows_and_of_ranks_are_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["llama"]
    kernels = TorchKernels()
    calls: list[int] = []
    fused = kernels.rotate_store_attend

    def counted(qkv: Tensor, **arguments: Any) -> Tensor:
        calls.append(len(qkv))
        return fused(qkv, **arguments)

    monkeypatch.setattr(kernels, "rotate_store_attend", counted)
    monkeypatch.setattr(kernels, "max_few_rows", lambda **_: 2)
    model = device_model(family, kernels)
    greedy(model, lengths=[0, 0], n_steps=1)
    assert calls == [2, 2]  # once a layer
    greedy(model, lengths=[0, 0, 0], n_steps=1)
    greedy(device_model(family, kernels, reduce=lambda x: x), lengths=[0], n_steps=1)
    assert calls == [2, 2]


def test_what_the_kernels_do_not_take_runs_as_other_steps_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    family = Family(head_dim=258, n_kv_heads=4)
    with caplog.at_level(logging.INFO):
        model = device_model(family, TritonKernels())
    assert model._few_rows is None
    assert [record.message for record in caplog.records] == [
        "steps of few rows run as others: kernels triton have none for 1 query heads of 258 to a "
        "K/V head"
    ]
